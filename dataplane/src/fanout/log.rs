//! What servers have noted with the time at which it happened: `SLOWLOG`, `COMMANDLOG`, `LATENCY`.

use super::value::Value;

/// Merges the replies to `SLOWLOG GET`: the newest entries of all groups, so many at most. Each keeps the
/// number that its server gave it.
pub(super) fn put_newest<'a>(
    replies: impl Iterator<Item = &'a [u8]>,
    most: usize,
    out: &mut Vec<u8>,
) {
    let mut entries = items(replies);
    entries.sort_by_key(|entry| std::cmp::Reverse(int(entry, 1)));
    entries.truncate(most);
    Value::Array(entries).put(out);
}

/// How many entries a `GET` asks for, by its count. Redis takes -1 for all; what is no count the servers
/// refuse.
pub(crate) fn most(count: Option<i64>) -> usize {
    usize::try_from(count.unwrap_or(10)).unwrap_or(usize::MAX)
}

/// Merges the replies to `LATENCY HISTORY`: the samples of all groups, the oldest first.
pub(super) fn put_samples<'a>(replies: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    let mut samples = items(replies);
    samples.sort_by_key(|sample| int(sample, 0));
    Value::Array(samples).put(out);
}

/// Merges the replies to `LATENCY LATEST`: of each event the newest sample, and the highest of all groups.
/// Newer servers tell a sum and a count, too.
pub(super) fn put_events<'a>(replies: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    let mut events: Vec<Value<'a>> = Vec::new();
    for event in items(replies) {
        let name = event.items().first().cloned();
        let known = events
            .iter_mut()
            .find(|known| known.items().first() == name.as_ref());
        match known {
            None => events.push(event),
            Some(known) => *known = merge_event(known, &event),
        }
    }
    Value::Array(events).put(out);
}

/// An event's name, the time and duration of its newest sample, the longest duration, sums.
fn merge_event<'a>(one: &Value<'a>, two: &Value<'a>) -> Value<'a> {
    let newest = if int(two, 1) > int(one, 1) { two } else { one };
    let mut merged: Vec<Value<'a>> = newest.items().to_vec();
    for (at, value) in merged.iter_mut().enumerate().skip(3) {
        let (one, two) = (int(one, at), int(two, at));
        *value = Value::Int(if at == 3 {
            one.max(two)
        } else {
            one.saturating_add(two)
        });
    }
    Value::Array(merged)
}

fn items<'a>(replies: impl Iterator<Item = &'a [u8]>) -> Vec<Value<'a>> {
    let items = |reply| Value::read(reply).map(Value::into_items);
    replies.filter_map(items).flatten().collect()
}

/// The number at this place; 0 if there is none.
fn int(entry: &Value<'_>, at: usize) -> i64 {
    entry.items().get(at).and_then(Value::int).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply of entries, each of a name and numbers.
    fn reply(entries: &[(&str, &[i64])]) -> Vec<u8> {
        let entry = |(name, numbers): &(&str, &[i64])| {
            let mut items = vec![Value::Bulk(name.as_bytes().to_vec().into())];
            items.extend(numbers.iter().map(|&number| Value::Int(number)));
            Value::Array(items)
        };
        let mut out = Vec::new();
        Value::Array(entries.iter().map(entry).collect()).put(&mut out);
        out
    }

    #[test]
    fn the_newest_of_all_come_first() {
        let one = reply(&[("d", &[40]), ("a", &[10])]);
        let two = reply(&[("c", &[30]), ("b", &[20])]);
        for (count, expected) in [
            (None, "dcba"),
            (Some(3), "dcb"),
            (Some(0), ""),
            (Some(-1), "dcba"),
        ] {
            let mut out = Vec::new();
            put_newest([&one[..], &two].into_iter(), most(count), &mut out);
            let all = [("d", 40), ("c", 30), ("b", 20), ("a", 10)];
            let all = all.map(|(name, time)| (name, [time]));
            let all: Vec<(&str, &[i64])> = all.iter().map(|(n, t)| (*n, &t[..])).collect();
            assert_eq!(out, reply(&all[..expected.len()]), "{count:?}");
        }
    }

    #[test]
    fn samples_are_put_in_order() {
        let sample = |time: i64| Value::Array(vec![Value::Int(time), Value::Int(5)]);
        let reply = |times: &[i64]| {
            let mut out = Vec::new();
            Value::Array(times.iter().copied().map(sample).collect()).put(&mut out);
            out
        };
        let (one, two) = (reply(&[1, 4]), reply(&[2, 3]));
        let mut out = Vec::new();
        put_samples([&one[..], &two].into_iter(), &mut out);
        assert_eq!(out, reply(&[1, 2, 3, 4]));
    }

    #[test]
    fn an_event_is_one_of_all_groups() {
        let one = reply(&[("fork", &[10, 7, 90]), ("command", &[5, 1, 1, 3, 2])]);
        let two = reply(&[("command", &[9, 2, 2, 4, 1]), ("aof", &[1, 1, 1])]);
        let mut out = Vec::new();
        put_events([&one[..], &two].into_iter(), &mut out);
        let expected = [
            ("fork", &[10, 7, 90][..]),
            ("command", &[9, 2, 2, 7, 3]),
            ("aof", &[1, 1, 1]),
        ];
        assert_eq!(out, reply(&expected));
    }
}
