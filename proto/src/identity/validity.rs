//! For how long a certificate is good, and when somebody is to be told that it ends.
//!
//! Pure: the time is given. Nothing here decides whether a certificate is accepted; the handshake does.

use std::fmt;

use x509_parser::{certificate::X509Certificate, prelude::FromDer};

const DAY: i64 = 24 * 60 * 60;

/// When a certificate begins and ends, in Unix seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Validity {
    from: i64,
    until: i64,
}

/// How near the end is. The later, the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Stage {
    /// 30 days or less.
    Month,
    /// 7 days or less.
    Week,
    /// One day or less.
    Day,
    /// It has ended.
    Over,
}

impl Stage {
    /// Those before the end, the nearest first, and how long before it they begin.
    const BEFORE: [(Self, i64); 3] = [
        (Self::Day, DAY),
        (Self::Week, 7 * DAY),
        (Self::Month, 30 * DAY),
    ];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Month => "ends within 30 days",
            Self::Week => "ends within 7 days",
            Self::Day => "ends within a day",
            Self::Over => "has expired",
        })
    }
}

impl Validity {
    /// Of a certificate in DER.
    pub(super) fn of(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        let validity = certificate.validity();
        Ok(Self {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        })
    }

    #[cfg(test)]
    pub(super) fn between(from: i64, until: i64) -> Self {
        Self { from, until }
    }

    /// Seconds until its end; negative once it is over.
    pub(super) fn left(self, now: i64) -> i64 {
        self.until.saturating_sub(now)
    }

    /// Which stage it is in; `None`: there is time. A stage that would take more than a third of the
    /// certificate's life does not count: whoever renews one of a day every few hours is not warned.
    pub(super) fn stage(self, now: i64) -> Option<Stage> {
        let left = self.left(now);
        if left <= 0 {
            return Some(Stage::Over);
        }
        let life = self.until.saturating_sub(self.from);
        let reached = |(_, before): &&(Stage, i64)| left <= *before && *before <= life / 3;
        let nearest = Stage::BEFORE.iter().find(reached);
        nearest.map(|(stage, _)| *stage)
    }
}

/// What is to be said of a certificate that is in `now`, where `told` was said last.
pub(super) fn due(told: Option<Stage>, now: Option<Stage>) -> Option<Stage> {
    now.filter(|_| now > told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_begins_in_time() {
        let year = Validity {
            from: 0,
            until: 365 * DAY,
        };
        for (left, expected) in [
            (31 * DAY, None),
            (30 * DAY + 1, None),
            (30 * DAY, Some(Stage::Month)),
            (7 * DAY + 1, Some(Stage::Month)),
            (7 * DAY, Some(Stage::Week)),
            (DAY, Some(Stage::Day)),
            (1, Some(Stage::Day)),
            (0, Some(Stage::Over)),
            (-DAY, Some(Stage::Over)),
        ] {
            let now = year.until - left;
            assert_eq!((year.left(now), year.stage(now)), (left, expected));
        }
    }

    #[test]
    fn a_short_life_has_fewer_stages() {
        let stages = |days: i64| {
            let short = Validity {
                from: 0,
                until: days * DAY,
            };
            let at = |now| short.stage(now);
            let mut seen: Vec<Stage> = (0..=days * DAY).step_by(3600).filter_map(at).collect();
            seen.dedup();
            seen
        };
        use Stage::{Day, Month, Over, Week};
        assert_eq!(stages(90), [Month, Week, Day, Over]);
        assert_eq!(stages(89), [Week, Day, Over]);
        assert_eq!(stages(20), [Day, Over]);
        assert_eq!(stages(1), [Over]);
    }

    #[test]
    fn each_stage_is_told_once() {
        use Stage::{Day, Over, Week};
        for (told, now, expected) in [
            (None, None, None),
            (None, Some(Week), Some(Week)),
            (Some(Week), Some(Week), None),
            (Some(Week), Some(Over), Some(Over)),
            (Some(Day), Some(Week), None), // the clock was set back
        ] {
            assert_eq!(due(told, now), expected, "{told:?} {now:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        for der in [&b""[..], b"\x30\x03\x02\x01\x00", b"certificate"] {
            assert!(Validity::of(der).is_err());
        }
    }
}
