//! `sluice completions`: scripts for shells.

use clap::{Args, CommandFactory};

use crate::{args::Cli, error::Error, output::Output};

pub(crate) const HELP: &str = "\
Examples:
  sluice completions bash > /etc/bash_completion.d/sluice
  sluice completions zsh > \"${fpath[1]}/_sluice\"
  sluice completions fish > ~/.config/fish/completions/sluice.fish

No RPC is called.";

/// For which shell.
#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: clap_complete::Shell,
}

/// Prints the script.
pub(crate) fn run(output: &Output, args: CompletionsArgs) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sluice", &mut script);
    output.raw(&script)
}
