//! Finds out, without schemas, which fields a message has and what decode makes of each.
//!
//! A message with one field set is made from its wire form: number and payload are tried until the
//! generated type takes them. Which field that was is read from the type's debug text.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::{super::*, values::values};

/// What decode makes of a field that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The resource is refused.
    Refused,
    /// The resource is taken, and the field is in the list of those without effect.
    Reported,
    /// What is decoded differs.
    Honoured,
    /// Nothing can be seen.
    Silent,
}

/// Forms of a value, the most telling one first.
const PAYLOADS: [(u8, &[u8]); 7] = [
    (2, b"\x01x"),
    (2, b"\x02\x08\x01"),
    (2, b"\x03\x0a\x01x"),
    (0, b"\x01"),
    (1, &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f]),
    (5, &[0, 0, 0x80, 0x3f]),
    (2, b"\x00"),
];

/// Highest field number in these messages.
const NUMBER_MAX: u32 = 70;

/// The top-level fields in a type's debug text.
fn blocks(text: &str) -> BTreeMap<String, String> {
    let mut blocks: BTreeMap<String, String> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().skip(1) {
        let is_field = line.starts_with("    ") && !line.starts_with("     ");
        if is_field && let Some((name, rest)) = line.trim().split_once(": ") {
            current = name.to_owned();
            blocks.insert(current.clone(), rest.to_owned());
        } else if let Some(block) = blocks.get_mut(&current) {
            block.push('\n');
            block.push_str(line);
        }
    }
    blocks
}

/// The name of a block that holds one of several variants.
fn variant(block: &str) -> Option<String> {
    let second = block.lines().nth(1)?.trim();
    let name: String = second.chars().take_while(|c| c.is_alphanumeric()).collect();
    (block.starts_with("Some(") && second.starts_with(char::is_uppercase)).then_some(name)
}

/// Every field of `M` with its fate. `base` is a message in which nothing else is missing; `place`
/// puts it into a resource.
pub(super) fn probe<M: Message + Default + Debug + PartialEq>(
    kind: Kind,
    base: &M,
    place: impl Fn(M) -> Any,
) -> BTreeMap<String, Fate> {
    let original = decode_any(kind, vec![place(clone(base))]);
    assert!(original.rejected.is_empty(), "{:?}", original.rejected);
    let empty = blocks(&format!("{:#?}", M::default()));
    let mut found: BTreeMap<String, Vec<(Option<String>, Fate)>> = BTreeMap::new();
    for number in 1..=NUMBER_MAX {
        for (wire, payload) in PAYLOADS {
            let mut field = Vec::new();
            prost::encoding::encode_varint(u64::from(number << 3 | u32::from(wire)), &mut field);
            field.extend(payload);
            let Some((name, variant)) = name_of::<M>(&empty, &field) else {
                continue;
            };
            let fate_of = |field: &[u8]| {
                let mut bytes = base.encode_to_vec();
                bytes.extend(field);
                match M::decode(&*bytes) {
                    Ok(changed) if changed != *base => judge(kind, &original, place(changed)),
                    // It is in the base already.
                    _ => Fate::Honoured,
                }
            };
            let mut fate = fate_of(&field);
            if fate == Fate::Refused {
                let full = variant.as_ref().map(|variant| format!("{name}.{variant}"));
                let real = values(&name).chain(full.iter().flat_map(|full| values(full)));
                let real = real.map(|value| {
                    let mut field = Vec::new();
                    value.encode(number, &mut field);
                    fate_of(&field)
                });
                let mut real = real.filter(|fate| *fate != Fate::Refused);
                let is_in_base =
                    || is_the_same(&blocks(&format!("{base:#?}")), &empty, &name, &variant);
                fate = match real.next() {
                    Some(fate) => fate,
                    None if is_in_base() => {
                        fate_without(base, number, |m| judge(kind, &original, place(m)))
                    }
                    None => fate,
                };
            }
            found.entry(name).or_default().push((variant, fate));
            break;
        }
    }
    let unknown: Vec<_> = empty
        .keys()
        .filter(|name| !found.contains_key(*name))
        .collect();
    assert!(unknown.is_empty(), "no number for {unknown:?}");
    let mut fates = BTreeMap::new();
    for (name, variants) in found {
        let is_one = variants.len() == 1;
        for (variant, fate) in variants {
            match variant {
                Some(variant) if !is_one => _ = fates.insert(format!("{name}.{variant}"), fate),
                _ => _ = fates.insert(name.clone(), fate),
            }
        }
    }
    fates
}

fn clone<M: Message + Default>(message: &M) -> M {
    M::decode(&*message.encode_to_vec()).expect("its own encoding")
}

/// The field that this wire form sets, alone.
fn name_of<M: Message + Default + Debug>(
    empty: &BTreeMap<String, String>,
    field: &[u8],
) -> Option<(String, Option<String>)> {
    let set = M::decode(field).ok()?;
    let set = blocks(&format!("{set:#?}"));
    let mut changed = set.iter().filter(|(name, block)| empty[*name] != **block);
    let (name, block) = changed.next()?;
    Some((name.clone(), variant(block)))
}

/// Whether the base sets this field, to the same of several variants.
fn is_the_same(
    base: &BTreeMap<String, String>,
    empty: &BTreeMap<String, String>,
    name: &str,
    variant_of_probe: &Option<String>,
) -> bool {
    base[name] != empty[name] && variant(&base[name]) == *variant_of_probe
}

/// What the base says with a field that is taken: something depends on it, when it does not do without.
fn fate_without<M: Message + Default>(base: &M, number: u32, judge: impl Fn(M) -> Fate) -> Fate {
    let bytes = base.encode_to_vec();
    let mut rest = &bytes[..];
    let mut kept = Vec::new();
    while !rest.is_empty() {
        let whole = rest;
        let (tag, wire) = prost::encoding::decode_key(&mut rest).expect("its own encoding");
        let context = prost::encoding::DecodeContext::default();
        prost::encoding::skip_field(wire, tag, &mut rest, context).expect("its own encoding");
        if tag != number {
            kept.extend(&whole[..whole.len() - rest.len()]);
        }
    }
    match judge(M::decode(&*kept).expect("fields of its own")) {
        Fate::Refused => Fate::Honoured,
        fate => fate,
    }
}

fn judge(kind: Kind, original: &Decoded, changed: Any) -> Fate {
    let decoded = decode_any(kind, vec![changed]);
    let (Some(before), Some(after)) = (original.accepted.first(), decoded.accepted.first()) else {
        return Fate::Refused;
    };
    if before.ignored != after.ignored {
        Fate::Reported
    } else if before.config != after.config || before.name != after.name {
        Fate::Honoured
    } else {
        Fate::Silent
    }
}
