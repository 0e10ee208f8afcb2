//! Protobuf's wire format, read in place.
//!
//! Stage 3. For resources that come by the thousand: nothing is copied or allocated, texts and messages
//! are parts of what was received. It takes and refuses exactly what prost does for the same field types,
//! the bound of nesting included; words for what is wrong are left to prost, which knows the names.

use std::cell::Cell;

/// Messages and groups inside of each other, as in prost.
const NESTING_MAX: u32 = 100;

/// Bytes that are not what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What comes before a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Of the field; not 0.
    pub(super) number: u32,
    wire: Wire,
}

/// How a value is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Varint,
    Fixed64,
    Delimited,
    GroupStart,
    GroupEnd,
    Fixed32,
}

/// The rest of a message.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a, 'l> {
    rest: &'a [u8],
    /// How many more may be inside of each other.
    nesting: u32,
    left: &'l Cell<bool>,
}

impl<'a, 'l> Reader<'a, 'l> {
    /// Reads a whole message. `left` becomes true when a part is [left](Self::leave).
    pub(super) fn new(bytes: &'a [u8], left: &'l Cell<bool>) -> Self {
        Self {
            rest: bytes,
            nesting: NESTING_MAX,
            left,
        }
    }

    /// The key of the next field, whose value has to be read or skipped then.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Key>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.key().map(Some)
    }

    #[inline]
    fn key(&mut self) -> Result<Key, Malformed> {
        let key = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
        let wire = match key & 7 {
            0 => Wire::Varint,
            1 => Wire::Fixed64,
            2 => Wire::Delimited,
            3 => Wire::GroupStart,
            4 => Wire::GroupEnd,
            5 => Wire::Fixed32,
            _ => return Err(Malformed),
        };
        match key >> 3 {
            0 => Err(Malformed),
            number => Ok(Key { number, wire }),
        }
    }

    /// `uint32`: of a larger number the lower half.
    pub(super) fn uint32(&mut self, key: Key) -> Result<u32, Malformed> {
        key.expect(Wire::Varint)?;
        Ok(self.varint()? as u32)
    }

    /// An `enum`, known or not.
    pub(super) fn enumeration(&mut self, key: Key) -> Result<i32, Malformed> {
        key.expect(Wire::Varint)?;
        Ok(self.varint()? as i32)
    }

    /// `bool`.
    pub(super) fn bool(&mut self, key: Key) -> Result<bool, Malformed> {
        key.expect(Wire::Varint)?;
        Ok(self.varint()? != 0)
    }

    /// Passes over a `double`.
    pub(super) fn double(&mut self, key: Key) -> Result<(), Malformed> {
        key.expect(Wire::Fixed64)?;
        self.take(8).map(drop)
    }

    /// `string`.
    pub(super) fn text(&mut self, key: Key) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes(key)?).map_err(|_| Malformed)
    }

    /// `bytes`, or those of a message.
    pub(super) fn bytes(&mut self, key: Key) -> Result<&'a [u8], Malformed> {
        key.expect(Wire::Delimited)?;
        self.delimited()
    }

    /// A message inside of this one.
    pub(super) fn message(&mut self, key: Key) -> Result<Self, Malformed> {
        key.expect(Wire::Delimited)?;
        self.entry()
    }

    /// An entry of a map, with the key in field 1 and the value in field 2. As in prost, whatever its
    /// layout is said to be.
    pub(super) fn entry(&mut self) -> Result<Self, Malformed> {
        let nesting = self.nesting.checked_sub(1).ok_or(Malformed)?;
        Ok(Self {
            rest: self.delimited()?,
            nesting,
            left: self.left,
        })
    }

    /// Merges a `google.protobuf.UInt32Value` into an earlier one.
    pub(super) fn uint32_value(
        &mut self,
        key: Key,
        value: &mut Option<u32>,
    ) -> Result<(), Malformed> {
        let mut message = self.message(key)?;
        let value = value.get_or_insert(0);
        while let Some(key) = message.next()? {
            match key.number {
                1 => *value = message.uint32(key)?,
                _ => message.skip(key)?,
            }
        }
        Ok(())
    }

    /// Passes over a message that is only looked at by prost, with all of the resource.
    pub(super) fn leave(&mut self, key: Key) -> Result<(), Malformed> {
        self.left.set(true);
        self.message(key).map(drop)
    }

    /// The same for an [entry](Self::entry).
    pub(super) fn leave_entry(&mut self) -> Result<(), Malformed> {
        self.left.set(true);
        self.entry().map(drop)
    }

    /// Passes over a field that is not known.
    pub(super) fn skip(&mut self, key: Key) -> Result<(), Malformed> {
        let nesting = self.nesting;
        self.skip_within(key, nesting)
    }

    fn skip_within(&mut self, key: Key, nesting: u32) -> Result<(), Malformed> {
        let inside = nesting.checked_sub(1).ok_or(Malformed)?;
        match key.wire {
            Wire::Varint => self.varint().map(drop),
            Wire::Fixed64 => self.take(8).map(drop),
            Wire::Fixed32 => self.take(4).map(drop),
            Wire::Delimited => self.delimited().map(drop),
            Wire::GroupEnd => Err(Malformed),
            Wire::GroupStart => loop {
                let inner = self.key()?;
                match inner.wire {
                    Wire::GroupEnd if inner.number == key.number => return Ok(()),
                    _ => self.skip_within(inner, inside)?,
                }
            },
        }
    }

    #[inline]
    fn delimited(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        self.take(length)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        match *self.rest {
            [byte, ref rest @ ..] if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(Malformed)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                // Of the tenth byte there is room for one bit.
                let fits = shift < 63 || byte < 2;
                return fits.then_some(value).ok_or(Malformed);
            }
        }
        Err(Malformed)
    }
}

impl Key {
    #[inline]
    fn expect(self, wire: Wire) -> Result<(), Malformed> {
        (self.wire == wire).then_some(()).ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading<T>(
        bytes: &[u8],
        read: impl FnOnce(&mut Reader<'_, '_>) -> Result<T, Malformed>,
    ) -> (Result<T, Malformed>, usize) {
        let left = Cell::new(false);
        let mut reader = Reader::new(bytes, &left);
        let value = read(&mut reader);
        (value, reader.rest.len())
    }

    /// Holds a varint against prost's reader of it.
    #[test]
    fn numbers_are_read_as_prost_reads_them() {
        let mut cases: Vec<Vec<u8>> = vec![vec![], vec![0x80], vec![0xff; 9], vec![0xff; 11]];
        for last in 0..=0x80 {
            cases.push([&[0xff; 9][..], &[last]].concat());
            cases.push([&[0x80; 4][..], &[last, 7, 7]].concat());
        }
        for shift in 0..64 {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(u64::MAX << shift, &mut bytes);
            prost::encoding::encode_varint(1 << shift, &mut bytes);
            cases.push(bytes);
        }
        for bytes in cases {
            let mut rest = &*bytes;
            let expected = prost::encoding::decode_varint(&mut rest).ok();
            let (got, left) = reading(&bytes, |reader| reader.varint());
            assert_eq!(got.ok(), expected, "{bytes:?}");
            if expected.is_some() {
                assert_eq!(left, rest.len(), "{bytes:?}");
            }
        }
    }

    #[test]
    fn keys_have_a_number_and_a_known_layout() {
        let first = |bytes: &[u8]| reading(bytes, |reader| reader.next()).0;
        assert_eq!(first(b""), Ok(None));
        let key = first(&[0x0a]).unwrap().unwrap();
        assert_eq!((key.number, key.wire), (1, Wire::Delimited));
        for bytes in [
            // Number 0, layouts 6 and 7, and a number of 30 bits.
            &[0x02][..],
            &[0x0e],
            &[0x0f],
            &[0x82, 0x80, 0x80, 0x80, 0x10],
        ] {
            assert_eq!(first(bytes), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn what_ends_early_is_malformed() {
        let passed = |bytes: &[u8]| {
            let skip = |reader: &mut Reader<'_, '_>| {
                while let Some(key) = reader.next()? {
                    reader.skip(key)?;
                }
                Ok(())
            };
            reading(bytes, skip).0.is_ok()
        };
        let all = [
            &[0x08, 0x01][..],
            &[0x09, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x0d, 1, 2, 3, 4],
            &[0x0a, 3, 1, 2, 3],
            // A group with a group and a number inside.
            &[0x0b, 0x13, 0x08, 0x01, 0x14, 0x0c],
        ]
        .concat();
        assert!(passed(&all));
        let ends = [2, 11, 16, 21];
        for length in 1..all.len() {
            assert_eq!(passed(&all[..length]), ends.contains(&length), "{length}");
        }
        // The end of no group, and of another one.
        assert!(!passed(&[0x0c]));
        assert!(!passed(&[0x0b, 0x14]));
    }

    #[test]
    fn nesting_has_a_bound() {
        let groups = |count: usize| [vec![0x0b; count], vec![0x0c; count]].concat();
        let passed = |bytes: &[u8]| {
            let skip = |reader: &mut Reader<'_, '_>| {
                let key = reader.next()?.ok_or(Malformed)?;
                reader.skip(key)
            };
            reading(bytes, skip).0.is_ok()
        };
        assert!(passed(&groups(NESTING_MAX as usize)));
        assert!(!passed(&groups(NESTING_MAX as usize + 1)));
    }
}
