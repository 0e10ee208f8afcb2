//! Values found by texts and prefixes, against a look at all of them.

use std::collections::BTreeSet;

use super::super::texts::{Key, Texts};
use crate::rng::{Rng, SplitMix64};

fn found(texts: &Texts<usize>, text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    texts.about(text, |value| found.push(*value));
    found.sort_unstable();
    found
}

#[test]
fn a_text_has_its_own_value_and_those_of_all_its_prefixes() {
    let keys = [
        Key::Equal("/a"),
        Key::Prefix("/a"),
        Key::Prefix("/a/b"),
        Key::Prefix("/a/b/c"),
        Key::Prefix("/a/c"),
        Key::Prefix("/b"),
        Key::Equal(""),
    ];
    let texts = Texts::new(keys.into_iter().zip(0..));
    for (text, values) in [
        ("", &[6][..]),
        ("/", &[]),
        ("/a", &[0, 1]),
        ("/a/", &[1]),
        ("/a/b", &[1, 2]),
        ("/a/bb", &[1, 2]),
        ("/a/b/c/d", &[1, 2, 3]),
        ("/a/b/d", &[1, 2]),
        ("/a/d", &[1]),
        ("/aa", &[1]),
        ("/b", &[5]),
        ("/c", &[]),
        ("a", &[]),
    ] {
        assert_eq!(found(&texts, text), values, "{text:?}");
    }
    let none: Texts<usize> = Texts::new([]);
    assert!(found(&none, "").is_empty());
}

#[test]
fn what_is_found_is_what_a_look_at_all_keys_finds() {
    let mut rng = SplitMix64::new(7);
    let mut text = |longest: u64| -> String {
        let length = rng.below(longest + 1);
        (0..length)
            .map(|_| ["a", "b", "é"][rng.below(3) as usize])
            .collect()
    };
    for _ in 0..500 {
        let words: BTreeSet<(bool, String)> = (0..20).map(|n| (n % 3 == 0, text(5))).collect();
        let key = |(is_equal, word): &'_ (bool, String)| (*is_equal, word.clone());
        let words: Vec<_> = words
            .iter()
            .map(key)
            .filter(|(is_equal, word)| *is_equal || !word.is_empty())
            .collect();
        let keys = words.iter().map(|(is_equal, word)| match is_equal {
            true => Key::Equal(word),
            false => Key::Prefix(word),
        });
        let texts = Texts::new(keys.zip(0..));
        for _ in 0..50 {
            let asked = text(7);
            let all = words.iter().enumerate();
            let about = all.filter(|(_, (is_equal, word))| match is_equal {
                true => *word == asked,
                false => asked.starts_with(&**word),
            });
            let expected: Vec<_> = about.map(|(at, _)| at).collect();
            assert_eq!(found(&texts, &asked), expected, "{asked:?} in {words:?}");
        }
    }
}
