//! Pages of lists.
//!
//! A list is sorted by a key that its resources keep; the token of the next page is the key of the
//! last resource seen. So whatever comes and goes between the pages, what stays is seen once.

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;

/// The page after `token`, and the token of the next; empty: that was all.
pub fn page<T>(
    sorted: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> String,
    size: u32,
    token: &str,
) -> (Vec<T>, String) {
    let size = match size as usize {
        0 => DEFAULT_SIZE,
        size => size.min(MAX_SIZE),
    };
    let mut rest = sorted
        .into_iter()
        .skip_while(|item| !token.is_empty() && key(item).as_str() <= token)
        .peekable();
    let page: Vec<T> = rest.by_ref().take(size).collect();
    let next = match (rest.peek(), page.last()) {
        (Some(_), Some(last)) => key(last),
        _ => String::new(),
    };
    (page, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(items: &[&str], size: u32, token: &str, expected: &[&str], next: &str) {
        let got = page(items.iter().copied(), |s| (*s).to_owned(), size, token);
        assert_eq!(got, (expected.to_vec(), next.to_owned()));
    }

    #[test]
    fn pages_follow_each_other() {
        check(&[], 2, "", &[], "");
        check(&["a", "b"], 2, "", &["a", "b"], "");
        check(&["a", "b", "c"], 2, "", &["a", "b"], "b");
        check(&["a", "b", "c"], 2, "b", &["c"], "");
        check(&["a", "c", "d"], 1, "b", &["c"], "c"); // b is gone
        check(&["a"], 2, "z", &[], "");
    }

    #[test]
    fn sizes_have_a_default_and_a_limit() {
        let items = || 0..2000_u32;
        let key = |n: &u32| format!("{n:04}");
        assert_eq!(page(items(), key, 0, "").0.len(), 100);
        assert_eq!(page(items(), key, 5000, "").0.len(), 1000);
    }
}
