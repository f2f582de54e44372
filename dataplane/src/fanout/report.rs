//! Texts for people, one of each group.

use super::value::text;
use crate::resp::{Protocol, put_verbatim};

/// Whose texts they are.
pub(crate) struct Report {
    pub(crate) protocol: Protocol,
    /// The groups' names, in the order in which they were asked.
    pub(crate) groups: Vec<String>,
}

impl Report {
    /// Writes one text below the other, each below the name of its group.
    pub(super) fn put<'a>(&self, replies: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        let texts = replies.map(|reply| String::from_utf8_lossy(text(reply).unwrap_or_default()));
        let named = self.groups.iter().zip(texts);
        let parts: Vec<String> = named
            .map(|(group, text)| format!("Group {group}:\n{}\n", text.trim_end()))
            .collect();
        put_verbatim(out, self.protocol, &parts.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_its_part() {
        let report = Report {
            protocol: Protocol::Resp2,
            groups: ["g1", "g2"].map(str::to_owned).to_vec(),
        };
        let replies = [&b"$6\r\nfine.\n\r\n"[..], b"=7\r\ntxt:bad\r\n"];
        let mut out = Vec::new();
        report.put(replies.into_iter(), &mut out);
        let expected = "Group g1:\nfine.\n\nGroup g2:\nbad\n";
        assert_eq!(text(&out), Some(expected.as_bytes()));
    }
}
