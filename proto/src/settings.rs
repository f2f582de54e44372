//! How every Sluice process reads its settings.
//!
//! A setting is one `clap` argument. From it follow, by rule, its environment variable
//! (`--max-clients` of the proxy is `SLUICE_PROXY_MAX_CLIENTS`) and its key in the TOML file
//! (`max-clients = 20000`). A flag goes before the environment, the environment before the file. A
//! key that is no setting is an error.

use std::{ffi::OsString, fs, path::PathBuf};

use clap::{Arg, ArgAction, Args, Command, CommandFactory, FromArgMatches, error::ErrorKind};

/// The flags about the settings themselves; every process has them.
#[derive(Args, Debug, Clone)]
pub struct ConfigFlags {
    /// Read settings from this TOML file; flags and environment go before it
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    pub config: Option<PathBuf>,
    /// Check all settings, say what is wrong, and exit
    #[arg(long, help_heading = "Settings")]
    pub check_config: bool,
    /// Print a settings file with every setting at its default, and exit
    #[arg(long, help_heading = "Settings")]
    pub print_default_config: bool,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed<T> {
    /// To run with these settings.
    Run(T),
    /// To print this text, and to end well.
    Show(String),
}

impl<T> Parsed<T> {
    /// The settings, if it asks to run.
    pub fn settings(self) -> Option<T> {
        match self {
            Self::Run(settings) => Some(settings),
            Self::Show(_) => None,
        }
    }
}

/// Reads the settings of a process whose environment variables start with `env_prefix`.
///
/// The error is ready to be shown: [`clap::Error::exit`] prints it and ends with 2 (or with 0, where
/// it is the help that was asked for).
pub fn parse<T: CommandFactory + FromArgMatches>(
    env_prefix: &str,
    argv: impl IntoIterator<Item = OsString>,
) -> Result<Parsed<T>, clap::Error> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    let command = T::command().mut_args(|arg| {
        if arg.get_long().is_none() || is_meta(&arg) {
            return arg;
        }
        let name = env_name(env_prefix, arg.get_id().as_str());
        arg.env(name).hide_env_values(true)
    });
    let known = command.clone();

    // A first look, only for `--config`: what is required may yet come from the file.
    let look = command
        .clone()
        .mut_args(|arg| arg.required(false))
        .ignore_errors(true);
    let file = look
        .try_get_matches_from(&argv)
        .ok()
        .and_then(|matches| matches.get_one::<PathBuf>("config").cloned());
    let command = match &file {
        Some(path) => with_file(command, path)?,
        None => command,
    };
    let mut shown = command.clone();
    let matches = command
        .try_get_matches_from(&argv)
        .map_err(|error| match &file {
            Some(path)
                if !matches!(
                    error.kind(),
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
                ) =>
            {
                let text = format!("{error}\n(with the settings of {})", path.display());
                shown.error(error.kind(), text.trim_start_matches("error: "))
            }
            _ => error,
        })?;
    if matches.get_flag("print_default_config") {
        return Ok(Parsed::Show(default_file(&known)));
    }
    T::from_arg_matches(&matches).map(Parsed::Run)
}

fn is_meta(arg: &Arg) -> bool {
    matches!(
        arg.get_id().as_str(),
        "check_config" | "print_default_config" | "help" | "version"
    )
}

fn env_name(prefix: &str, id: &str) -> String {
    format!("{prefix}_{}", id.to_ascii_uppercase())
}

/// Makes the file's values the defaults: flags and environment then go before them.
fn with_file(mut command: Command, path: &std::path::Path) -> Result<Command, clap::Error> {
    let mut blank = command.clone();
    let mut error =
        |kind, message: String| blank.error(kind, format!("{}: {message}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| error(ErrorKind::Io, e.to_string()))?;
    let table: toml::Table =
        toml::from_str(&text).map_err(|e| error(ErrorKind::InvalidValue, e.to_string()))?;
    for (key, value) in table {
        let id = key.replace('-', "_");
        let known = command.get_arguments().any(|arg| {
            arg.get_id() == id.as_str() && arg.get_long() == Some(key.as_str()) && !is_meta(arg)
        });
        if !known || key == "config" {
            let message = format!("unknown setting `{key}` (--print-default-config shows all)");
            return Err(error(ErrorKind::UnknownArgument, message));
        }
        if value.as_str() == Some("") {
            continue; // not set, as the default file shows it
        }
        let values = match value {
            toml::Value::Array(values) => values,
            value => vec![value],
        };
        let mut texts = Vec::new();
        for value in values {
            texts.push(match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(n) => n.to_string(),
                toml::Value::Float(n) => n.to_string(),
                toml::Value::Boolean(b) => b.to_string(),
                other => {
                    let message = format!("`{key}` cannot be a {}", other.type_str());
                    return Err(error(ErrorKind::InvalidValue, message));
                }
            });
        }
        command = command.mut_arg(id, |arg| arg.required(false).default_values(texts));
    }
    Ok(command)
}

/// A TOML file in which every setting stands, commented out, at its default.
fn default_file(command: &Command) -> String {
    let mut text = format!("# Settings of {}.\n", command.get_name());
    for arg in command.get_arguments().filter(|arg| !is_meta(arg)) {
        let Some(key) = arg.get_long().filter(|key| *key != "config") else {
            continue;
        };
        text.push('\n');
        for line in arg
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default()
            .lines()
        {
            text.push_str(&format!("# {line}\n"));
        }
        let defaults: Vec<String> = arg
            .get_default_values()
            .iter()
            .map(|v| v.to_string_lossy().into_owned())
            .collect();
        let value = match (arg.get_action(), defaults.as_slice()) {
            (ArgAction::SetTrue, _) => "false".to_owned(),
            (_, []) => "\"\"  # not set".to_owned(),
            (_, [one]) => quote(one),
            (_, many) => format!(
                "[{}]",
                many.iter().map(|v| quote(v)).collect::<Vec<_>>().join(", ")
            ),
        };
        text.push_str(&format!("# {key} = {value}\n"));
    }
    text
}

fn quote(value: &str) -> String {
    match value.parse::<i64>() {
        Ok(_) => value.to_owned(),
        Err(_) => toml::Value::from(value).to_string(),
    }
}

/// A value parser for durations such as `500ms`, `10s`, `5m`.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}: write 500ms, 10s or 5m"))
}

/// A value parser for sizes in bytes such as `65536`, `64KiB`, `512MiB`, `1GiB`.
pub fn bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("write 65536, 64KiB, 512MiB or 1GiB".to_owned()),
    };
    number
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| "write 65536, 64KiB, 512MiB or 1GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    #[command(name = "probe")]
    struct Probe {
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:1")]
        listen: String,
        /// A number that has no default
        #[arg(long)]
        number: u32,
        /// Some
        #[arg(long, value_delimiter = ',')]
        names: Vec<String>,
        /// On or off
        #[arg(long)]
        fast: bool,
        #[command(flatten)]
        config: ConfigFlags,
    }

    fn check(file: &str, args: &[&str]) -> Result<Probe, String> {
        parse_file(file, args).map(|parsed| parsed.settings().unwrap())
    }

    fn parse_file(file: &str, args: &[&str]) -> Result<Parsed<Probe>, String> {
        let path = std::env::temp_dir().join(format!("sluice-settings-{:p}", file.as_ptr()));
        fs::write(&path, file).unwrap();
        let argv = ["probe", "--config", path.to_str().unwrap()];
        let result = parse::<Probe>(
            "SLUICE_TEST_PROBE",
            argv.iter().chain(args).map(|s| OsString::from(*s)),
        );
        fs::remove_file(path).unwrap();
        result.map_err(|e| e.to_string())
    }

    #[test]
    fn flag_goes_before_file() {
        let file = "listen = \"a:1\"\nnumber = 7\nnames = [\"x\", \"y\"]\nfast = true\n";
        let probe = check(file, &[]).unwrap();
        assert_eq!(
            (probe.listen.as_str(), probe.number, probe.fast),
            ("a:1", 7, true)
        );
        assert_eq!(probe.names, ["x", "y"]);
        let probe = check(file, &["--listen", "b:2", "--names", "z"]).unwrap();
        assert_eq!(
            (probe.listen.as_str(), probe.names.as_slice()),
            ("b:2", &["z".to_owned()][..])
        );
    }

    #[test]
    fn errors_name_the_setting() {
        for (file, error) in [
            ("lissen = 1\n", "unknown setting `lissen`"),
            ("config = \"x\"\n", "unknown setting `config`"),
            ("number = \"x\"\n", "--number"),
            ("number = 1979-05-27\n", "cannot be a datetime"),
            ("number = \n", "TOML parse error"),
            ("", "--number"),
        ] {
            let got = check(file, &[]).unwrap_err();
            assert!(got.contains(error), "expected `{error}` in `{got}`");
        }
    }

    #[test]
    fn the_default_file_shows_every_setting() {
        let asked = parse_file("number = 1\n", &["--print-default-config"]).unwrap();
        let Parsed::Show(text) = asked else {
            panic!("{asked:?}")
        };
        for line in [
            "# Where to listen",
            "# listen = \"127.0.0.1:1\"",
            "# fast = false",
        ] {
            assert!(text.contains(line), "{text}");
        }
        // As printed it sets nothing; uncommented, it sets everything to what it is anyhow.
        assert!(
            text.lines()
                .all(|line| line.is_empty() || line.starts_with('#'))
        );
        let settings = text.lines().filter(|line| line.contains(" = "));
        let uncommented: String = settings.map(|line| format!("{}\n", &line[2..])).collect();
        let probe = check(&uncommented, &["--number", "5"]).unwrap();
        assert_eq!((probe.listen.as_str(), probe.number), ("127.0.0.1:1", 5));
    }

    #[test]
    fn sizes_and_durations() {
        assert_eq!(bytes("64KiB"), Ok(65536));
        assert_eq!(bytes("1g"), Ok(1 << 30));
        assert!(
            bytes("x").is_err() && bytes("-1").is_err() && bytes("99999999999999999999").is_err()
        );
        assert_eq!(
            duration("1500ms"),
            Ok(std::time::Duration::from_millis(1500))
        );
        assert!(duration("fast").is_err());
    }
}
