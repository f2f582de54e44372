//! Maps of figures: `MEMORY STATS`, `LATENCY HISTOGRAM`, `FUNCTION STATS`.

use super::value::Value;

/// Merges the replies to `MEMORY STATS`: bytes and counts are added; what is a share is the highest.
pub(super) fn put_sums(replies: &[&[u8]], out: &mut Vec<u8>) {
    let maps: Vec<Value<'_>> = replies.iter().filter_map(|r| Value::read(r)).collect();
    let maps: Vec<&Value<'_>> = maps.iter().collect();
    sum_maps(&maps).put(out);
}

fn sum_maps<'a>(maps: &[&Value<'a>]) -> Value<'a> {
    by_key(maps, |key, values| {
        let is_share = key.is_some_and(|key| key.ends_with(b"-per-key"));
        let first = values[0];
        if !first.items().is_empty() {
            return sum_maps(values);
        }
        let ints = values.iter().filter_map(|value| value.int());
        match first.int() {
            Some(_) if is_share => Value::Int(ints.max().unwrap_or(0)),
            Some(_) => Value::Int(ints.fold(0, i64::saturating_add)),
            None => {
                let by_size =
                    |one: &&&Value<'a>, two: &&&Value<'a>| one.float().total_cmp(&two.float());
                let highest = values.iter().max_by(by_size);
                (*highest.expect("there is a first")).clone()
            }
        }
    })
}

/// Merges the replies to `LATENCY HISTOGRAM`. A bucket says how many calls took up to so long; one that a
/// server does not tell has as many as the one before it.
pub(super) fn put_histograms(replies: &[&[u8]], out: &mut Vec<u8>) {
    let maps: Vec<Value<'_>> = replies.iter().filter_map(|r| Value::read(r)).collect();
    let maps: Vec<&Value<'_>> = maps.iter().collect();
    let merged = by_key(&maps, |_, commands| {
        by_key(commands, |key, values| match key {
            Some(b"calls") => {
                let calls = values.iter().filter_map(|value| value.int());
                Value::Int(calls.fold(0, i64::saturating_add))
            }
            Some(_) | None => sum_buckets(values),
        })
    });
    merged.put(out);
}

fn sum_buckets<'a>(histograms: &[&Value<'a>]) -> Value<'a> {
    let pairs = |histogram: &Value<'a>| -> Vec<(i64, i64)> {
        let pairs = histogram.pairs();
        pairs
            .filter_map(|(bound, calls)| Some((bound.int()?, calls.int()?)))
            .collect()
    };
    let histograms_of: Vec<Vec<(i64, i64)>> = histograms.iter().map(|h| pairs(h)).collect();
    let mut bounds: Vec<i64> = histograms_of
        .iter()
        .flatten()
        .map(|(bound, _)| *bound)
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    let up_to = |bound: i64| -> i64 {
        let calls = |histogram: &Vec<(i64, i64)>| {
            let within = histogram.iter().filter(|(own, _)| *own <= bound);
            within.map(|(_, calls)| *calls).max().unwrap_or(0)
        };
        histograms_of.iter().map(calls).fold(0, i64::saturating_add)
    };
    let items = bounds
        .into_iter()
        .flat_map(|bound| [bound, up_to(bound)].map(Value::Int));
    histograms[0].alike(items.collect())
}

/// `FUNCTION STATS`: the libraries are the same everywhere, and where a function runs is what matters.
pub(super) fn put_running(replies: &[&[u8]], out: &mut Vec<u8>) {
    let runs = |reply: &&[u8]| {
        let stats = Value::read(reply);
        let running = stats
            .as_ref()
            .and_then(|stats| stats.get(b"running_script"));
        running.is_some_and(|running| !running.is_null())
    };
    let found = replies.iter().copied().find(runs);
    out.extend_from_slice(found.unwrap_or(replies[0]));
}

/// The map of all keys in several, in the order in which they come, each with what `merge` makes of its
/// values: at least one, from the maps that have it.
fn by_key<'a>(
    maps: &[&Value<'a>],
    merge: impl Fn(Option<&[u8]>, &[&Value<'a>]) -> Value<'a>,
) -> Value<'a> {
    let mut keys: Vec<&Value<'a>> = Vec::new();
    for (key, _) in maps.iter().flat_map(|map| map.pairs()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let mut items = Vec::new();
    for key in keys {
        let pairs = maps.iter().flat_map(|map| map.pairs());
        let values: Vec<&Value<'a>> = pairs
            .filter(|(own, _)| *own == key)
            .map(|(_, v)| v)
            .collect();
        items.push(key.clone());
        items.push(merge(key.text(), &values));
    }
    let empty = Value::Array(Vec::new());
    (*maps.first().unwrap_or(&&empty)).alike(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map in either shape, of words: `a 1 b { c 2 }`; a number with a point is a double.
    fn map(words: &str, header: u8) -> Vec<u8> {
        fn items<'a>(words: &mut impl Iterator<Item = &'a str>, header: u8) -> Value<'static> {
            let mut found = Vec::new();
            while let Some(word) = words.next().filter(|word| *word != "}") {
                found.push(match word.parse() {
                    Ok(number) => Value::Int(number),
                    Err(_) if word == "{" => items(words, header),
                    Err(_) if word == "nil" => Value::Other(b"_\r\n"[..].into()),
                    Err(_) if word.parse::<f64>().is_ok() && header == b'%' => {
                        Value::Other(format!(",{word}\r\n").into_bytes().into())
                    }
                    Err(_) => Value::Bulk(word.as_bytes().to_vec().into()),
                });
            }
            if header == b'%' {
                Value::Map(found)
            } else {
                Value::Array(found)
            }
        }
        let mut out = Vec::new();
        items(&mut words.split_whitespace(), header).put(&mut out);
        out
    }

    type Put = fn(&[&[u8]], &mut Vec<u8>);

    fn check(put: Put, one: &str, two: &str, expected: &str) {
        for header in [b'*', b'%'] {
            let (one, two) = (map(one, header), map(two, header));
            let mut out = Vec::new();
            put(&[&one, &two], &mut out);
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            assert_eq!(text(out), text(map(expected, header)));
        }
    }

    #[test]
    fn bytes_are_added_and_shares_are_not() {
        check(
            put_sums,
            "peak.allocated 5 db-0 { overhead 1 } keys.bytes-per-key 9 ratio 1.5 only 1",
            "peak.allocated 7 db-0 { overhead 2 } keys.bytes-per-key 4 ratio 12.5 other 2",
            "peak.allocated 12 db-0 { overhead 3 } keys.bytes-per-key 9 ratio 12.5 only 1 other 2",
        );
        check(put_sums, "", "", "");
    }

    #[test]
    fn buckets_are_added_where_they_are() {
        check(
            put_histograms,
            "get { calls 3 histogram_usec { 1 1 4 3 } } set { calls 1 histogram_usec { 2 1 } }",
            "get { calls 5 histogram_usec { 2 4 16 5 } }",
            "get { calls 8 histogram_usec { 1 1 2 5 4 7 16 8 } } set { calls 1 histogram_usec { 2 1 } }",
        );
    }

    #[test]
    fn what_runs_is_told() {
        let (idle, busy) = (
            "running_script nil engines { }",
            "running_script { name f } engines { }",
        );
        check(put_running, idle, busy, busy);
        check(put_running, busy, idle, busy);
        check(put_running, idle, idle, idle);
    }
}
