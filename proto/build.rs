//! Compiles the `.proto` files with `protox`: no system `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=sluice");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(["sluice/v1/topology.proto", "sluice/v1/admin.proto"])?;
    let descriptor = compiler.encode_file_descriptor_set();
    fs::write(out.join("descriptor.bin"), &descriptor)?; // served by gRPC reflection
    tonic_prost_build::configure()
        .extern_path(".google.protobuf.Timestamp", "::pbjson_types::Timestamp")
        .compile_fds(compiler.file_descriptor_set())?;
    pbjson_build::Builder::new()
        .register_descriptors(&descriptor)?
        .build(&[".sluice.v1"])?;
    Ok(())
}
