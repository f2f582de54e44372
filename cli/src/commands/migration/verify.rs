//! `sluice migration verify`: compares what both sides of a migration have.

use std::num::NonZeroU32;

use clap::Args;
use proto::v1;

use super::{Which, bar};
use crate::{
    client::{self, Admin},
    commands::Context,
    error::Error,
    output::{self, StatusLine, Table, Tables, or_dash, plural, thousands},
};

pub(super) const HELP: &str = "\
Examples:
  sluice migration create --slots 0-99 --target g2 --keep-source --wait --id m7
  sluice migration verify m7
  sluice migration verify m7 --sample 1/100 -o json
  sluice migration resume m7

Exits with 0 if no key differs, and with 1 if one does.

RPC: AdminService.VerifyMigration";

/// What to compare.
#[derive(Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    which: Which,
    /// Compare only some keys, chosen by chance: `1/100` or `1%` are one of a hundred
    #[arg(long, value_name = "1/N", value_parser = sample, default_value = "1/1", hide_default_value = true)]
    sample: NonZeroU32,
}

/// One key of so many.
fn sample(text: &str) -> Result<NonZeroU32, String> {
    let rule = || "must be 1/N or P%, as 1/100 or 1%".to_owned();
    if let Some(many) = text.strip_prefix("1/") {
        return many.parse().map_err(|_| rule());
    }
    let percent: f64 = text
        .strip_suffix('%')
        .and_then(|percent| percent.parse().ok())
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .ok_or_else(rule)?;
    // A part that is no whole fraction is rounded up to one: rather more keys than fewer.
    NonZeroU32::new((100.0 / percent) as u32).ok_or_else(rule)
}

/// Does it.
pub(super) async fn run(context: &mut Context, args: VerifyArgs) -> Result<(), Error> {
    let request = v1::VerifyMigrationRequest {
        id: args.which.id.to_string(),
        one_in: args.sample.get(),
    };
    let mut stream = context
        .client
        .read(Admin::verify_migration, request)
        .await?;
    let mut line = StatusLine::new();
    loop {
        let told = stream.message().await.map_err(client::Error::Refused)?;
        let told = told.ok_or_else(|| Error::failed("the controller ended the comparison"))?;
        if told.done {
            line.end();
            context.output.show(&told, tables(&told))?;
            return verdict(&told);
        }
        line.show(&progress(&told), false);
    }
}

fn verdict(told: &v1::VerifyMigrationResponse) -> Result<(), Error> {
    if told.keys_different > 0 {
        let message = format!(
            "{} of {} compared differ",
            thousands(told.keys_different),
            plural(told.keys_compared as usize, "key")
        );
        let hint = "keys that clients change meanwhile, or have changed since their slot moved, differ too";
        return Err(Error::failed(message).hint(hint));
    }
    output::note(&format!(
        "{} compared, none differs",
        plural(told.keys_compared as usize, "key")
    ));
    Ok(())
}

fn progress(told: &v1::VerifyMigrationResponse) -> String {
    let part = match told.keys_total {
        0 => 0.0,
        total => (told.keys_seen as f64 / total as f64).min(1.0),
    };
    format!(
        "{} {:>3}%  {} keys compared, {} differ",
        bar(part),
        (part * 100.0) as u32,
        thousands(told.keys_compared),
        thousands(told.keys_different)
    )
}

fn tables(told: &v1::VerifyMigrationResponse) -> Tables {
    let summary = Table::fields([
        ("Slots", told.slots.clone()),
        ("Moved", or_dash(&told.moved_slots)),
        ("Keys compared", thousands(told.keys_compared)),
        ("Keys different", thousands(told.keys_different)),
    ]);
    if told.differences.is_empty() {
        return summary.into();
    }
    let row = |found: &v1::KeyDifference| {
        [
            found.what().as_str_name().to_owned(),
            found.database.to_string(),
            found.slot.to_string(),
            found.key.escape_ascii().to_string(),
        ]
    };
    let header = ["WHAT", "DB", "SLOT", "KEY"];
    [
        summary,
        Table::new(header, told.differences.iter().map(row)),
    ]
    .into()
}

#[cfg(test)]
mod tests {
    use v1::key_difference::What;

    use super::*;

    #[test]
    fn samples_are_read() {
        let read = |text| sample(text).ok().map(NonZeroU32::get);
        for (text, many) in [
            ("1/1", 1),
            ("1/100", 100),
            ("100%", 1),
            ("1%", 100),
            ("0.5%", 200),
        ] {
            assert_eq!(read(text), Some(many), "{text}");
        }
        for wrong in ["100", "0", "1/0", "2/3", "0%", "101%", "-1%", "some", ""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_differs_is_shown() {
        let told = v1::VerifyMigrationResponse {
            slots: "0-9".to_owned(),
            keys_compared: 1200,
            keys_different: 1,
            differences: vec![v1::KeyDifference {
                database: 3,
                key: b"a\xff b".to_vec(),
                slot: 7,
                what: What::Missing.into(),
            }],
            done: true,
            ..v1::VerifyMigrationResponse::default()
        };
        insta::assert_snapshot!(tables(&told).render(None), @r"
        Slots:            0-9
        Moved:            -
        Keys compared:    1,200
        Keys different:   1

        WHAT      DB   SLOT   KEY
        MISSING   3    7      a\xff b
        ");
        assert!(verdict(&told).is_err());
    }
}
