//! `sluice-controller`: reads its settings, runs the controller, ends with 0, 1 (failed) or 2 (usage).

use std::{
    env,
    io::{self, IsTerminal, Write},
    process::{self, ExitCode},
};

use controlplane::{
    app::{self, App},
    config::{ENV_PREFIX, LogFormat, Settings},
};
use proto::settings::{self, Parsed};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

pub(crate) fn main() -> ExitCode {
    let settings: Settings = match settings::parse(ENV_PREFIX, env::args_os()) {
        Ok(Parsed::Run(settings)) => settings,
        Ok(Parsed::Show(text)) => {
            return match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        Err(e) => e.exit(),
    };
    start_log(&settings);
    let result = if settings.config.check_config {
        check(&settings)
    } else {
        run(settings)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Flags, environment and file were read; what they name is left.
fn check(settings: &Settings) -> anyhow::Result<()> {
    app::check(settings)?;
    Ok(writeln!(io::stdout(), "OK")?)
}

#[tokio::main]
async fn run(settings: Settings) -> anyhow::Result<()> {
    outlive_hangups()?;
    App::build(settings).await?.run(asked_to_stop()?).await
}

/// SIGHUP asks many a daemon to read its settings again. Here it is only told that it is of no use.
fn outlive_hangups() -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    // Owned by the runtime: it listens until the process ends.
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            warn!(
                "SIGHUP: nothing is reloaded, restart the controller to change its settings; new \
                 certificates are found without"
            );
        }
    });
    Ok(())
}

/// Resolves with the first SIGTERM or SIGINT. The second ends the process at once.
fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut next = async move || {
        tokio::select! {
            _ = term.recv() => info!("SIGTERM"),
            _ = int.recv() => info!("SIGINT"),
        }
    };
    Ok(async move {
        next().await;
        // Owned by the runtime: it waits for something that mostly never comes.
        tokio::spawn(async move {
            next().await;
            process::exit(1);
        });
    })
}

fn start_log(settings: &Settings) {
    let filter = EnvFilter::new(&settings.log);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
