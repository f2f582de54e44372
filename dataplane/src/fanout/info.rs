//! `INFO` of a whole cluster: what the groups' primaries say, as if one server said it.
//!
//! Each field is merged by its name ([`Rule`]): most are added, what is a share or a state is the highest.
//! Sections and fields keep the order of the first server, which is Redis's, so that whoever reads a
//! server's `INFO` reads this one. What is about clients the proxy says itself ([`Own`]). A group that
//! fails leaves its part out, and is named in the section `Sluice`.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::Write as _,
};

use super::value::text;
use crate::resp::{Protocol, put_verbatim};

/// What the proxy says, and whom it has asked.
pub(crate) struct Info {
    pub(crate) protocol: Protocol,
    /// What was asked for of the proxy's own sections.
    pub(crate) own: Vec<Own>,
    /// All groups with slots; none if nothing was to be asked of them.
    pub(crate) groups: Vec<Asked>,
}

/// The proxy's own part of a section.
pub(crate) struct Own {
    pub(crate) name: &'static str,
    /// The servers' section of this name is left out.
    pub(crate) is_whole: bool,
    pub(crate) fields: Vec<(&'static str, String)>,
    /// A field, and a number that is added to what the servers say.
    pub(crate) more: Option<(&'static str, u64)>,
}

/// A group, and what became of asking it.
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) slots: usize,
    pub(crate) primary: String,
    /// Nothing could be sent to it.
    pub(crate) is_down: bool,
}

/// Sections that servers or the proxy may have, in Redis's order.
const ORDER: [&str; 15] = [
    "Server",
    "Clients",
    "Memory",
    "Persistence",
    "Threads",
    "Stats",
    "Replication",
    "CPU",
    "Modules",
    "Commandstats",
    "Errorstats",
    "Latencystats",
    "Cluster",
    "Keyspace",
    "Sluice",
];

struct Section<'a> {
    name: &'a str,
    fields: Vec<(String, String)>,
}

impl Info {
    /// Writes the text, from the replies of those groups that were asked; an error or none of those that
    /// failed.
    pub(crate) fn put<'a>(
        &self,
        replies: impl Iterator<Item = Option<&'a [u8]>>,
        out: &mut Vec<u8>,
    ) {
        let said: Vec<Option<&str>> = replies
            .map(|reply| std::str::from_utf8(text(reply?)?).ok())
            .collect();
        let texts: Vec<&str> = said.iter().copied().flatten().collect();
        let mut sections = merge(&texts);
        for own in &self.own {
            let fields = own.fields.iter();
            let mut fields: Vec<(String, String)> = fields
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            if own.name == "Sluice" {
                fields.extend(self.of_groups(&said));
            }
            put_own(&mut sections, own, fields);
        }
        let mut text = String::new();
        for (index, section) in sections.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\r\n" };
            let _ = write!(text, "{gap}# {}\r\n", section.name);
            for (name, value) in &section.fields {
                let _ = write!(text, "{name}:{value}\r\n");
            }
        }
        put_verbatim(out, self.protocol, &text);
    }

    /// What is said of the groups.
    fn of_groups(&self, said: &[Option<&str>]) -> Vec<(String, String)> {
        let mut said = said.iter();
        let mut failed = 0;
        let mut lines = Vec::new();
        for group in &self.groups {
            let answered = !group.is_down && said.next().is_some_and(Option::is_some);
            failed += usize::from(!answered);
            let status = if answered { "ok" } else { "failed" };
            lines.push((
                format!("group_{}", group.name),
                format!(
                    "slots={},primary={},status={status}",
                    group.slots, group.primary
                ),
            ));
        }
        if !self.groups.is_empty() {
            lines.insert(0, ("groups_failed".to_owned(), failed.to_string()));
        }
        lines
    }
}

/// Puts the proxy's own fields over those of the servers, or where their section would be.
fn put_own(sections: &mut Vec<Section<'_>>, own: &Own, fields: Vec<(String, String)>) {
    let place = |name: &str| {
        ORDER
            .iter()
            .position(|known| known.eq_ignore_ascii_case(name))
    };
    match sections.iter_mut().find(|section| section.name == own.name) {
        Some(section) if own.is_whole => section.fields = fields,
        Some(section) => {
            for (name, value) in fields {
                match section.field(&name) {
                    Some(old) => *old = value,
                    None => section.fields.push((name, value)),
                }
            }
            if let Some((name, more)) = own.more
                && let Some(number) = section.field(name)
            {
                *number = number
                    .parse()
                    .map_or(more, |said: u64| said.saturating_add(more))
                    .to_string();
            }
        }
        None => {
            let before = sections
                .iter()
                .position(|section| place(section.name) > place(own.name));
            let section = Section {
                name: own.name,
                fields,
            };
            sections.insert(before.unwrap_or(sections.len()), section);
        }
    }
}

/// The sections of several texts as those of one.
fn merge<'a>(texts: &[&'a str]) -> Vec<Section<'a>> {
    let mut gathered: Vec<Gathered<'a>> = Vec::new();
    for text in texts {
        let mut at = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("# ") {
                let known = gathered.iter().position(|section| section.name == name);
                at = Some(known.unwrap_or(gathered.len()));
                if known.is_none() {
                    gathered.push(Gathered::new(name));
                }
            } else if let (Some(at), Some((name, value))) = (at, line.split_once(':')) {
                gathered[at].take(name, value);
            }
        }
    }
    gathered.into_iter().map(Gathered::merge).collect()
}

impl Section<'_> {
    fn field(&mut self, name: &str) -> Option<&mut String> {
        let mut fields = self.fields.iter_mut();
        fields
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
    }
}

/// What several texts say in one section.
struct Gathered<'a> {
    name: &'a str,
    /// In the order in which they come, each with its values.
    fields: Vec<(&'a str, Vec<&'a str>)>,
    places: HashMap<&'a str, usize>,
    replicas: Vec<&'a str>,
}

impl<'a> Gathered<'a> {
    fn new(name: &'a str) -> Self {
        Self {
            name,
            fields: Vec::new(),
            places: HashMap::new(),
            replicas: Vec::new(),
        }
    }

    fn take(&mut self, name: &'a str, value: &'a str) {
        if is_replica(name) {
            return self.replicas.push(value);
        }
        // Modules are lines of one name, and should be the same everywhere.
        if name == "module" {
            if !self.fields.iter().any(|(_, values)| values[0] == value) {
                self.fields.push((name, vec![value]));
            }
            return;
        }
        match self.places.entry(name) {
            Entry::Occupied(place) => self.fields[*place.get()].1.push(value),
            Entry::Vacant(place) => {
                place.insert(self.fields.len());
                self.fields.push((name, vec![value]));
            }
        }
    }

    fn merge(self) -> Section<'a> {
        let mut merged: Vec<(String, String)> = Vec::new();
        for (name, values) in &self.fields {
            let value = Rule::of(name).merge(name, values, &merged);
            merged.push(((*name).to_owned(), value));
            if *name == "connected_slaves" {
                let replicas = self.replicas.iter().zip(0..);
                merged.extend(replicas.map(|(r, n)| (format!("slave{n}"), (*r).to_owned())));
            }
        }
        Section {
            name: self.name,
            fields: merged,
        }
    }
}

/// `slave0` and the like: a line for each replica, numbered by its primary.
fn is_replica(name: &str) -> bool {
    name.strip_prefix("slave")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// How a field's values become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// Added, if they are numbers; of `name=number` lists, number by number. Else the first.
    Sum,
    /// The highest.
    Most,
    /// The lowest.
    Least,
    /// The first that is not `ok`.
    Worst,
    First,
    /// Of another field, for people to read.
    Human,
    /// This one, whatever they say.
    Fixed(&'static str),
}

impl Rule {
    /// By a field's name.
    fn of(name: &str) -> Self {
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        match name {
            // The proxy takes writes, whatever has become of one group's primary.
            "role" => Self::Fixed("master"),
            "rdb_last_save_time"
            | "min_slaves_good_slaves"
            | "loading_start_time"
            | "loading_loaded_perc" => Self::Least,
            "second_repl_offset"
            | "repl_backlog_size"
            | "repl_backlog_first_byte_offset"
            | "cluster_enabled"
            | "mem_allocator" => Self::First,
            "loading" | "async_loading" | "latest_fork_usec" | "repl_backlog_active" => Self::Most,
            // All groups have the same.
            "number_of_cached_scripts"
            | "number_of_functions"
            | "number_of_libraries"
            | "tracking_total_prefixes" => Self::Most,
            _ if ends(&["_human"]) => Self::Human,
            _ if ends(&["_status"]) => Self::Worst,
            _ if ends(&[
                "_perc",
                "_ratio",
                "_in_progress",
                "_scheduled",
                "_enabled",
                "_running",
                "_active",
                "_time_sec",
                "_age",
                "_seconds",
                "_max_input_buffer",
                "_max_output_buffer",
            ]) || name.starts_with("latency_percentiles_usec_") =>
            {
                Self::Most
            }
            _ => Self::Sum,
        }
    }

    /// `before` are the fields that stand before this one, merged.
    fn merge(self, name: &str, values: &[&str], before: &[(String, String)]) -> String {
        let first = || values[0].to_owned();
        match self {
            Self::First => first(),
            Self::Fixed(value) => value.to_owned(),
            Self::Worst => values
                .iter()
                .find(|&&v| v != "ok")
                .unwrap_or(&values[0])
                .to_string(),
            // The field that it shows has the same name but for the end.
            Self::Human => {
                let name = name.trim_end_matches("_human");
                let shown = before.iter().find(|(known, _)| known == name);
                let bytes = shown.and_then(|(_, bytes)| bytes.parse().ok());
                bytes.map_or_else(first, human)
            }
            Self::Sum | Self::Most | Self::Least if values[0].contains('=') => {
                self.merge_lists(values)
            }
            Self::Sum | Self::Most | Self::Least => {
                self.merge_numbers(values).unwrap_or_else(first)
            }
        }
    }

    /// Numbers, perhaps with decimals, perhaps in percent. None: one is none.
    fn merge_numbers(self, values: &[&str]) -> Option<String> {
        if let Ok(numbers) = values
            .iter()
            .map(|v| v.parse())
            .collect::<Result<Vec<i64>, _>>()
        {
            let merged = match self {
                Self::Most => numbers.into_iter().max()?,
                Self::Least => numbers.into_iter().min()?,
                _ => numbers.into_iter().fold(0, i64::saturating_add),
            };
            return Some(merged.to_string());
        }
        let unit = if values[0].ends_with('%') { "%" } else { "" };
        let decimals = |value: &str| {
            value
                .split_once('.')
                .map_or(0, |(_, decimals)| decimals.len())
        };
        let bare = values.iter().map(|value| value.trim_end_matches('%'));
        let decimals = bare.clone().map(decimals).max()?;
        let numbers: Vec<f64> = bare.map(|v| v.parse().ok()).collect::<Option<_>>()?;
        let merged = match self {
            Self::Most => numbers.into_iter().fold(f64::MIN, f64::max),
            Self::Least => numbers.into_iter().fold(f64::MAX, f64::min),
            _ => numbers.into_iter().sum(),
        };
        Some(format!("{merged:.decimals$}{unit}"))
    }

    /// Of `calls=2,usec=10`, number by number.
    fn merge_lists(self, values: &[&str]) -> String {
        fn items(list: &str) -> impl Iterator<Item = (&str, &str)> {
            list.split(',').filter_map(|item| item.split_once('='))
        }
        let number = |list: &str, name: &str| -> f64 {
            let value = items(list).find(|(known, _)| *known == name);
            value
                .and_then(|(_, value)| value.parse().ok())
                .unwrap_or(0.0)
        };
        let total = |name: &str| values.iter().map(|list| number(list, name)).sum::<f64>();
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in values.iter().flat_map(|list| items(list)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let of_name = |name: &str| match name {
            "usec_per_call" => format!("{:.2}", total("usec") / total("calls").max(1.0)),
            // Each group's mean counts as often as it has keys that expire.
            "avg_ttl" => {
                let sum: f64 = values
                    .iter()
                    .map(|list| number(list, "avg_ttl") * number(list, "expires"))
                    .sum();
                format!("{:.0}", sum / total("expires").max(1.0))
            }
            name => {
                let of_lists = values.iter().flat_map(|list| items(list));
                let own = of_lists.filter(|(known, _)| *known == name);
                let own: Vec<&str> = own.map(|(_, value)| value).collect();
                self.merge_numbers(&own)
                    .unwrap_or_else(|| own[0].to_owned())
            }
        };
        let merged = names.iter().map(|name| format!("{name}={}", of_name(name)));
        merged.collect::<Vec<_>>().join(",")
    }
}

/// Bytes as Redis shows them to people.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["K", "M", "G", "T", "P"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut number = bytes as f64 / 1024.0;
    for unit in UNITS {
        if number < 1024.0 {
            return format!("{number:.2}{unit}");
        }
        number /= 1024.0;
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's text, of lines.
    fn frame(lines: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_verbatim(&mut out, Protocol::Resp3, &lines.replace('\n', "\r\n"));
        out
    }

    fn put(info: &Info, replies: &[Option<&str>]) -> String {
        let frames: Vec<Option<Vec<u8>>> = replies.iter().map(|lines| lines.map(frame)).collect();
        let mut out = Vec::new();
        info.put(frames.iter().map(Option::as_deref), &mut out);
        let body = text(&out).unwrap();
        String::from_utf8(body.to_vec())
            .unwrap()
            .replace("\r\n", "\n")
    }

    fn check(one: &str, two: &str, expected: &str) {
        let info = Info {
            protocol: Protocol::Resp2,
            own: Vec::new(),
            groups: Vec::new(),
        };
        assert_eq!(put(&info, &[Some(one), Some(two)]), expected);
    }

    #[test]
    fn fields_are_merged_by_what_they_mean() {
        for (one, two, expected) in [
            ("used_memory:1", "used_memory:2", "used_memory:3"),
            (
                "instantaneous_input_kbps:0.50",
                "instantaneous_input_kbps:1.25",
                "instantaneous_input_kbps:1.75",
            ),
            (
                "used_cpu_sys:0.100000",
                "used_cpu_sys:1.000001",
                "used_cpu_sys:1.100001",
            ),
            (
                "mem_fragmentation_ratio:1.50",
                "mem_fragmentation_ratio:1.20",
                "mem_fragmentation_ratio:1.50",
            ),
            (
                "used_memory_peak_perc:99.10%",
                "used_memory_peak_perc:100.19%",
                "used_memory_peak_perc:100.19%",
            ),
            ("loading:0", "loading:1", "loading:1"),
            (
                "rdb_last_bgsave_status:ok",
                "rdb_last_bgsave_status:err",
                "rdb_last_bgsave_status:err",
            ),
            (
                "rdb_last_save_time:9",
                "rdb_last_save_time:7",
                "rdb_last_save_time:7",
            ),
            (
                "second_repl_offset:-1",
                "second_repl_offset:-1",
                "second_repl_offset:-1",
            ),
            ("role:slave", "role:master", "role:master"),
            (
                "maxmemory_policy:noeviction",
                "maxmemory_policy:allkeys-lru",
                "maxmemory_policy:noeviction",
            ),
            (
                "used:2048\nused_human:2.00K",
                "used:1048576\nused_human:1.00M",
                "used:1050624\nused_human:1.00M",
            ),
            (
                "big:9223372036854775807",
                "big:1",
                "big:9223372036854775807",
            ),
            (
                "cmdstat_get:calls=1,usec=5,usec_per_call=5.00,failed_calls=0",
                "cmdstat_get:calls=3,usec=5,usec_per_call=1.67,failed_calls=2",
                "cmdstat_get:calls=4,usec=10,usec_per_call=2.50,failed_calls=2",
            ),
            (
                "errorstat_ERR:count=1",
                "errorstat_OOM:count=2",
                "errorstat_ERR:count=1\nerrorstat_OOM:count=2",
            ),
            (
                "latency_percentiles_usec_get:p50=1.003,p99=5.023",
                "latency_percentiles_usec_get:p50=2.007,p99=4.015",
                "latency_percentiles_usec_get:p50=2.007,p99=5.023",
            ),
            (
                "db0:keys=3,expires=1,avg_ttl=100",
                "db0:keys=5,expires=3,avg_ttl=200",
                "db0:keys=8,expires=4,avg_ttl=175",
            ),
            (
                "db0:keys=3,expires=0,avg_ttl=0",
                "db9:keys=5,expires=0,avg_ttl=0",
                "db0:keys=3,expires=0,avg_ttl=0\ndb9:keys=5,expires=0,avg_ttl=0",
            ),
            (
                "connected_slaves:1\nslave0:ip=a,port=1\nend:1",
                "connected_slaves:2\nslave0:ip=b,port=2\nslave1:ip=c,port=3\nend:1",
                "connected_slaves:3\nslave0:ip=a,port=1\nslave1:ip=b,port=2\nslave2:ip=c,port=3\nend:2",
            ),
        ] {
            let section = |fields: &str| format!("# Any\n{fields}\n");
            check(&section(one), &section(two), &section(expected));
        }
        let modules = "# Modules\nmodule:name=a,ver=1\nmodule:name=b,ver=1\n";
        check(modules, modules, modules);
        check("", "", "");
    }

    #[test]
    fn bytes_are_shown_as_redis_shows_them() {
        for (bytes, shown) in [
            (0, "0B"),
            (1023, "1023B"),
            (965_704, "943.07K"),
            (12_247_040, "11.68M"),
            (25_276_502_016, "23.54G"),
        ] {
            assert_eq!(human(bytes), shown);
        }
    }

    #[test]
    fn the_proxys_own_stand_where_redis_has_them() {
        let own = |name, is_whole, field| Own {
            name,
            is_whole,
            fields: vec![(field, "own".to_owned())],
            more: (name == "Clients").then_some(("blocked_clients", 2)),
        };
        let group = |name: &str, is_down| Asked {
            name: name.to_owned(),
            slots: 5,
            primary: "h:1".to_owned(),
            is_down,
        };
        let info = Info {
            protocol: Protocol::Resp2,
            own: vec![
                own("Server", true, "redis_version"),
                own("Clients", false, "connected_clients"),
                own("Sluice", true, "sluice_version"),
            ],
            groups: vec![group("g1", true), group("g2", false), group("g3", false)],
        };
        let said = "# Server\nredis_version:1\nos:Linux\n\n# Clients\nconnected_clients:3\nblocked_clients:1\n\n# CPU\na:1\n";
        let sluice = "# Sluice\nsluice_version:own\ngroups_failed:2\n\
             group_g1:slots=5,primary=h:1,status=failed\ngroup_g2:slots=5,primary=h:1,status=failed\n\
             group_g3:slots=5,primary=h:1,status=ok\n";
        assert_eq!(
            put(&info, &[None, Some(said)]),
            format!(
                "# Server\nredis_version:own\n\n# Clients\nconnected_clients:own\nblocked_clients:3\n\n# CPU\na:1\n\n{sluice}"
            )
        );
        let alone = put(&info, &[None, None]);
        assert!(
            alone.starts_with(
                "# Server\nredis_version:own\n\n# Clients\nconnected_clients:own\n\n# Sluice\n"
            ),
            "{alone}"
        );
        assert!(alone.contains("groups_failed:3"), "{alone}");
    }
}
