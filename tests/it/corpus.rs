//! What fuzzers have found, and what is known to hurt others, hurts nobody here.

use std::{fs, panic, path::Path};

use tests::fuzz::TARGETS;

#[test]
fn every_input_of_the_corpus_is_harmless() {
    for (name, body) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            inputs += 1;
            assert!(
                panic::catch_unwind(|| body(&bytes)).is_ok(),
                "target {name}, input {}",
                path.display()
            );
        }
        assert!(inputs > 0, "no input for {name}");
    }
}
