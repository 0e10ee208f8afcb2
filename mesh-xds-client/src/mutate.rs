//! Seeded damage for bounded fuzzing, in tests only.
//!
//! Knows the wire format of protobuf, not its schemas: a message is taken apart into fields, some are
//! changed, dropped, doubled or invented, and it is put together again, so that damage reaches deep
//! into decode instead of failing at the first byte. Plain damage of bytes is there as well.

use mesh_core::rng::{Rng, SplitMix64};

/// Deepest message that is taken apart.
const DEPTH_MAX: usize = 12;

/// Texts that have been trouble somewhere.
const TEXTS: [&str; 24] = [
    "",
    "*",
    "*.",
    "a",
    "%s",
    "%",
    "%zz",
    "ads",
    "(((((((",
    "(a{1000}){1000}",
    "[",
    "\\",
    "^$",
    ":method",
    "x-bin",
    "\u{0}",
    "é\u{301}",
    "::1",
    "0.0.0.0",
    "999.999.999.999",
    "xdstp://x/t/c?b=2&a=1#f",
    "xdstp:",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "spiffe://t/ns/n/sa/s",
];

const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    100,
    65_535,
    65_536,
    u32::MAX as u64,
    u32::MAX as u64 + 1,
    i32::MAX as u64,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX,
];

#[derive(Clone, Debug)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

#[derive(Clone, Debug)]
struct Field {
    number: u64,
    value: Value,
}

/// Rounds of a test: `default`, or what the environment variable `MESH_FUZZ_ROUNDS` says, for a long
/// run.
pub(crate) fn rounds(default: usize) -> usize {
    let said = std::env::var("MESH_FUZZ_ROUNDS").ok();
    said.map_or(default, |text| {
        text.parse().expect("MESH_FUZZ_ROUNDS is a number")
    })
}

/// A damaged copy of a protobuf message.
pub(crate) fn message(bytes: &[u8], rng: &mut SplitMix64) -> Vec<u8> {
    let mut fields = match parse(bytes, 0) {
        Some(fields) if rng.below(10) > 0 => fields,
        _ => return damage(bytes, rng),
    };
    for _ in 0..=rng.below(3) {
        let count = count(&fields).max(1);
        let mut at = rng.below(count);
        change(&mut fields, &mut at, rng);
    }
    let mut out = Vec::new();
    write(&fields, &mut out);
    out
}

/// A damaged copy of any bytes.
pub(crate) fn damage(bytes: &[u8], rng: &mut SplitMix64) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.below(out.len() as u64 + 1) as usize;
        match rng.below(5) {
            0 => out.truncate(at),
            1 => out.insert(at, rng.next_u64() as u8),
            2 if at < out.len() => out[at] ^= 1 << rng.below(8),
            3 if at < out.len() => _ = out.remove(at),
            _ => {
                let end = (at + rng.below(16) as usize).min(out.len());
                let part = out[at..end].to_vec();
                out.extend(part);
            }
        }
    }
    out
}

/// A damaged copy of a text.
pub(crate) fn text(original: &str, rng: &mut SplitMix64) -> String {
    let mut bytes = damage(original.as_bytes(), rng);
    if rng.below(3) == 0 {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let part = TEXTS[rng.below(TEXTS.len() as u64) as usize];
        bytes.splice(at..at, part.bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn count(fields: &[Field]) -> u64 {
    let nested = fields.iter().map(|field| match &field.value {
        Value::Message(fields) => 1 + count(fields),
        _ => 1,
    });
    nested.sum()
}

/// Changes the field at position `at`, in order of depth.
fn change(fields: &mut Vec<Field>, at: &mut u64, rng: &mut SplitMix64) {
    if rng.below(12) == 0 || fields.is_empty() {
        let field = invent(fields, rng);
        return fields.push(field);
    }
    for i in 0..fields.len() {
        if *at == 0 {
            match rng.below(6) {
                0 => _ = fields.remove(i),
                1 => {
                    let copy = fields[i].clone();
                    fields.insert(i, copy);
                }
                2 => fields[i].number = 1 + rng.below(40),
                _ => alter(&mut fields[i].value, rng),
            }
            *at = u64::MAX;
            return;
        }
        *at -= 1;
        if let Value::Message(nested) = &mut fields[i].value {
            let inside = count(nested);
            if *at < inside {
                return change(nested, at, rng);
            }
            *at -= inside;
        }
    }
}

fn alter(value: &mut Value, rng: &mut SplitMix64) {
    match value {
        Value::Varint(n) => *n = NUMBERS[rng.below(NUMBERS.len() as u64) as usize],
        Value::Fixed64(bytes) => *bytes = rng.next_u64().to_le_bytes(),
        Value::Fixed32(bytes) => *bytes = (rng.next_u64() as u32).to_le_bytes(),
        Value::Bytes(bytes) if rng.below(2) == 0 => *bytes = damage(bytes, rng),
        Value::Bytes(bytes) => {
            *bytes = TEXTS[rng.below(TEXTS.len() as u64) as usize].into();
        }
        Value::Message(fields) => {
            let field = invent(fields, rng);
            fields.push(field);
        }
    }
}

fn invent(near: &[Field], rng: &mut SplitMix64) -> Field {
    let value = match rng.below(4) {
        0 => Value::Varint(NUMBERS[rng.below(NUMBERS.len() as u64) as usize]),
        1 => Value::Message(Vec::new()),
        2 if !near.is_empty() => near[rng.below(near.len() as u64) as usize].value.clone(),
        _ => Value::Bytes(TEXTS[rng.below(TEXTS.len() as u64) as usize].into()),
    };
    Field {
        number: 1 + rng.below(40),
        value,
    }
}

fn parse(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            1 => Value::Fixed64(take(&mut bytes, 8)?.try_into().ok()?),
            5 => Value::Fixed32(take(&mut bytes, 4)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let inner = take(&mut bytes, length)?;
                match parse(inner, depth + 1) {
                    Some(fields) if depth < DEPTH_MAX && !inner.is_empty() => {
                        Value::Message(fields)
                    }
                    _ => Value::Bytes(inner.to_vec()),
                }
            }
            _ => return None,
        };
        let number = key >> 3;
        if number == 0 || number > 10_000 {
            return None;
        }
        fields.push(Field { number, value });
    }
    Some(fields)
}

fn take<'b>(bytes: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(bytes, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn write(fields: &[Field], out: &mut Vec<u8>) {
    for Field { number, value } in fields {
        let wire = match value {
            Value::Varint(_) => 0,
            Value::Fixed64(_) => 1,
            Value::Bytes(_) | Value::Message(_) => 2,
            Value::Fixed32(_) => 5,
        };
        put(number << 3 | wire, out);
        match value {
            Value::Varint(n) => put(*n, out),
            Value::Fixed64(bytes) => out.extend(bytes),
            Value::Fixed32(bytes) => out.extend(bytes),
            Value::Bytes(bytes) => {
                put(bytes.len() as u64, out);
                out.extend(bytes);
            }
            Value::Message(fields) => {
                let mut inner = Vec::new();
                write(fields, &mut inner);
                put(inner.len() as u64, out);
                out.extend(inner);
            }
        }
    }
}

fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
