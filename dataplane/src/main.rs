//! `sluice-proxy`: reads the settings, starts the [`dataplane`], and turns its end into an exit code.

use std::{env, process::ExitCode};

use dataplane::{App, Args, Config};
use proto::settings::Parsed;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

pub(crate) fn main() -> ExitCode {
    let args: Args = match proto::settings::parse("SLUICE_PROXY", env::args_os()) {
        Ok(Parsed::Run(args)) => args,
        Ok(Parsed::Show(text)) => {
            print(&text);
            return ExitCode::SUCCESS;
        }
        Err(e) => e.exit(),
    };
    let result = Config::new(&args).map(|config| (args, config));
    match result.and_then(|(args, config)| start(&args, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprint(&format!("Error: {e:#}\n"));
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args, config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).map_err(|e| anyhow::anyhow!("--log: {e}"))?;
    if args.only_checks() {
        print("OK\n");
        return Ok(());
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    match args.log_format.as_str() {
        "json" => log.json().init(),
        _ => log.init(),
    }
    // Control stream, admin HTTP and acceptor; the data threads have runtimes of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let app = App::build(config)?;
        app.run(stop_signal()?).await
    });
    runtime.shutdown_background();
    result
}

/// Completes with the first SIGTERM or SIGINT; the second ends the process at once.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut stop = Some(stop);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {
                    tracing::warn!("SIGHUP: settings are not reloaded; restart to change them");
                    continue;
                }
            }
            match stop.take() {
                Some(stop) => drop(stop),
                None => std::process::exit(1),
            }
        }
    });
    Ok(async move { drop(stopped.await) })
}

#[allow(clippy::print_stdout)]
fn print(text: &str) {
    print!("{text}");
}

#[allow(clippy::print_stderr)]
fn eprint(text: &str) {
    eprint!("{text}");
}
