//! Kafka's record batches (magic 2), as bytes: read with everything that a record may carry, and
//! written with headers as they are.
//!
//! kafka-protocol's own decoder keeps headers in a map, so equal names collapse, and unpacks
//! without a bound; hence this one. Pure, apart from memory: at most `UNPACKED_BYTES_MAX` a batch.
//!
//! A batch that can't be read is given as one record whose value is the batch's bytes. Nobody can
//! decode that, so it takes the way of a bad record, and the partition goes on behind it.
//!
//! Layout: kafka.apache.org/documentation/#recordbatch.

use std::collections::HashSet;
use std::io::Read;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::base::EpochMillis;
use crate::limits::kafka as limits;
use crate::ports::{Header, Record, TimedBy};

/// Base offset and length: what stands before the bytes that the length counts.
const PREFIX_BYTES: usize = 12;
/// From the batch's first byte to its first record.
const HEADER_BYTES: usize = 61;
const MAGIC_AT: usize = 16;
const MAGIC: u8 = 2;
/// Where the bytes begin that the checksum covers.
const CHECKED_AT: usize = 21;

const TIME_OF_APPEND: u16 = 1 << 3;
const TRANSACTIONAL: u16 = 1 << 4;
const CONTROL: u16 = 1 << 5;
/// The type of a control record that ends an aborted transaction.
const ABORT: u16 = 0;

/// Why a batch can't be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum BatchError {
    #[error("it ends too early")]
    Short,
    #[error("magic {0}, not {MAGIC}: written before Kafka 0.11")]
    Magic(u8),
    #[error("its checksum is wrong")]
    Checksum,
    #[error("codec {0} is not known")]
    Codec(u16),
    #[error("it can't be unpacked: {0}")]
    Packed(String),
    #[error("it unpacks to more than {} bytes", limits::UNPACKED_BYTES_MAX)]
    TooLarge,
    #[error("a record in it is malformed")]
    Record,
}

/// A transaction that was given up, as a fetch names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Aborted {
    pub producer: i64,
    /// Of its first record in this partition.
    pub first_offset: i64,
}

/// What the bytes of one partition hold.
#[derive(Default, Debug)]
pub(super) struct Decoded {
    pub records: Vec<Record>,
    /// Behind the last complete batch; what was asked for, if there is none.
    pub next: u64,
    /// Batches that can't be read: first offset and reason.
    pub bad: Vec<(u64, BatchError)>,
}

/// Reads the complete batches from `from` on: the last one may be cut. Control records and records
/// of aborted transactions are left out; `next` passes them.
pub(super) fn decode(mut bytes: Bytes, from: u64, aborted: &[Aborted]) -> Decoded {
    let mut decoded = Decoded { next: from, ..Decoded::default() };
    let mut waiting: Vec<Aborted> = aborted.to_vec();
    waiting.sort_by_key(|one| std::cmp::Reverse(one.first_offset));
    let mut given_up = HashSet::new();
    while let Some(batch) = split_batch(&mut bytes) {
        let header = match BatchHeader::read(&batch) {
            Ok(header) => header,
            Err(error) => {
                decoded.put_bad(&batch, None, from, error);
                continue;
            }
        };
        if header.last_offset < from {
            continue;
        }
        while let Some(one) = waiting.pop_if(|one| one.first_offset <= header.last_offset as i64) {
            given_up.insert(one.producer);
        }
        if header.attributes & CONTROL != 0 {
            if header.is_abort(&batch) {
                given_up.remove(&header.producer);
            }
        } else if header.attributes & TRANSACTIONAL != 0 && given_up.contains(&header.producer) {
            // Passed below.
        } else {
            let before = decoded.records.len();
            if let Err(error) = header.read_records(&batch, from, &mut decoded.records) {
                decoded.records.truncate(before);
                decoded.put_bad(&batch, Some(&header), from, error);
                continue;
            }
        }
        decoded.next = decoded.next.max(header.last_offset + 1);
    }
    decoded
}

/// Takes the next batch, if it is complete.
fn split_batch(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.get(8..PREFIX_BYTES)?.try_into().ok().map(u32::from_be_bytes)?;
    let length = PREFIX_BYTES.checked_add(length as usize)?;
    (bytes.len() >= length && length > MAGIC_AT).then(|| bytes.split_to(length))
}

impl Decoded {
    /// One record that holds the batch's bytes, at the first wanted offset that it covers.
    fn put_bad(
        &mut self,
        batch: &Bytes,
        header: Option<&BatchHeader>,
        from: u64,
        error: BatchError,
    ) {
        let base = i64::from_be_bytes(batch[..8].try_into().expect("eight bytes"));
        let offset = u64::try_from(base).unwrap_or(0).max(from).max(self.next);
        self.records.push(Record {
            offset,
            appended_at: header.map_or(EpochMillis(0), |header| time(header.max_time)),
            timed_by: header.map_or(TimedBy::Producer, BatchHeader::timed_by),
            key: None,
            value: Some(batch.clone()),
            headers: Vec::new(),
        });
        self.bad.push((offset, error));
        // Without a header that can be believed the broker is asked for the next offset, and gives
        // the same batch until that is passed: each offset in it comes once.
        let last = header.map_or(offset, |header| header.last_offset);
        self.next = self.next.max(offset.max(last) + 1);
    }
}

struct BatchHeader {
    base_offset: u64,
    last_offset: u64,
    attributes: u16,
    first_time: i64,
    max_time: i64,
    producer: i64,
    count: usize,
}

impl BatchHeader {
    fn read(batch: &Bytes) -> Result<Self, BatchError> {
        let magic = batch[MAGIC_AT];
        if magic != MAGIC {
            return Err(BatchError::Magic(magic));
        }
        if batch.len() < HEADER_BYTES {
            return Err(BatchError::Short);
        }
        let mut header = batch.slice(..HEADER_BYTES);
        let base_offset = header.get_i64();
        header.advance(4 + 4 + 1);
        let checksum = header.get_u32();
        if checksum != crc32c::crc32c(&batch[CHECKED_AT..]) {
            return Err(BatchError::Checksum);
        }
        let attributes = header.get_u16();
        let last_delta = header.get_i32();
        let (first_time, max_time) = (header.get_i64(), header.get_i64());
        let producer = header.get_i64();
        header.advance(2 + 4);
        let count = header.get_i32();
        let (Ok(base_offset), Ok(last_delta), Ok(count)) =
            (u64::try_from(base_offset), u64::try_from(last_delta), usize::try_from(count))
        else {
            return Err(BatchError::Record);
        };
        let last_offset = base_offset + last_delta;
        Ok(Self { base_offset, last_offset, attributes, first_time, max_time, producer, count })
    }

    fn timed_by(&self) -> TimedBy {
        if self.attributes & TIME_OF_APPEND == 0 { TimedBy::Producer } else { TimedBy::Log }
    }

    /// Whether this control batch says that its producer's transaction was given up. Its key is a
    /// version and a type.
    fn is_abort(&self, batch: &Bytes) -> bool {
        let mut control = Vec::new();
        let read = self.read_records(batch, 0, &mut control);
        let key = control.first().and_then(|record| record.key.as_ref());
        read.is_ok() && key.is_some_and(|key| key.get(2..4) == Some(&ABORT.to_be_bytes()))
    }

    fn read_records(
        &self,
        batch: &Bytes,
        from: u64,
        out: &mut Vec<Record>,
    ) -> Result<(), BatchError> {
        let mut bytes = unpack(self.attributes & 7, batch.slice(HEADER_BYTES..))?;
        for _ in 0..self.count {
            let record = self.read_record(&mut bytes).ok_or(BatchError::Record)?;
            // A batch is given whole, also when what was asked for lies in its middle.
            if record.offset >= from {
                out.push(record);
            }
        }
        Ok(())
    }

    fn read_record(&self, bytes: &mut Bytes) -> Option<Record> {
        let length = usize::try_from(take_varint(bytes)?).ok()?;
        let mut record = take(bytes, length)?;
        take(&mut record, 1)?;
        let time_delta = take_varint(&mut record)?;
        let offset = self.base_offset + u64::try_from(take_varint(&mut record)?).ok()?;
        let key = take_nullable(&mut record)?;
        let value = take_nullable(&mut record)?;
        let count = usize::try_from(take_varint(&mut record)?).ok()?;
        // A header takes two bytes at least, so a lie about their number allocates nothing.
        let mut headers = Vec::with_capacity(count.min(record.len() / 2));
        for _ in 0..count {
            let name = take_nullable(&mut record)??;
            headers.push(Header { name, value: take_nullable(&mut record)? });
        }
        let appended_at = match self.timed_by() {
            TimedBy::Log => self.max_time,
            TimedBy::Producer => self.first_time.saturating_add(time_delta),
        };
        (offset <= self.last_offset).then_some(Record {
            offset,
            appended_at: time(appended_at),
            timed_by: self.timed_by(),
            key,
            value,
            headers,
        })
    }
}

fn time(millis: i64) -> EpochMillis {
    EpochMillis(u64::try_from(millis).unwrap_or(0).min(EpochMillis::MAX.0))
}

fn unpack(codec: u16, packed: Bytes) -> Result<Bytes, BatchError> {
    match codec {
        0 => Ok(packed),
        1 => read_bounded(Ok(flate2::read::MultiGzDecoder::new(&packed[..]))),
        2 => unpack_snappy(packed),
        3 => read_bounded(lz4::Decoder::new(&packed[..])),
        4 => read_bounded(zstd::stream::read::Decoder::new(&packed[..])),
        other => Err(BatchError::Codec(other)),
    }
}

fn read_bounded(reader: std::io::Result<impl Read>) -> Result<Bytes, BatchError> {
    let packed = |error: std::io::Error| BatchError::Packed(error.to_string());
    let mut out = Vec::new();
    let most = limits::UNPACKED_BYTES_MAX as u64 + 1;
    reader.map_err(packed)?.take(most).read_to_end(&mut out).map_err(packed)?;
    if out.len() > limits::UNPACKED_BYTES_MAX {
        return Err(BatchError::TooLarge);
    }
    Ok(out.into())
}

/// Java writes blocks behind a magic word (xerial), others one raw block.
fn unpack_snappy(mut packed: Bytes) -> Result<Bytes, BatchError> {
    const XERIAL: &[u8] = b"\x82SNAPPY\x00";
    const XERIAL_BYTES: usize = 16;
    if !packed.starts_with(XERIAL) {
        let mut out = Vec::new();
        unpack_block(&packed, &mut out)?;
        return Ok(out.into());
    }
    take(&mut packed, XERIAL_BYTES).ok_or(BatchError::Short)?;
    let mut out = Vec::new();
    while !packed.is_empty() {
        let length = take(&mut packed, 4).ok_or(BatchError::Short)?.get_u32();
        let block = take(&mut packed, length as usize).ok_or(BatchError::Short)?;
        unpack_block(&block, &mut out)?;
    }
    Ok(out.into())
}

fn unpack_block(block: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
    let packed = |error: snap::Error| BatchError::Packed(error.to_string());
    let length = snap::raw::decompress_len(block).map_err(packed)?;
    let before = out.len();
    if length > limits::UNPACKED_BYTES_MAX - before {
        return Err(BatchError::TooLarge);
    }
    out.resize(before + length, 0);
    snap::raw::Decoder::new().decompress(block, &mut out[before..]).map_err(packed)?;
    Ok(())
}

fn take(bytes: &mut Bytes, length: usize) -> Option<Bytes> {
    (bytes.len() >= length).then(|| bytes.split_to(length))
}

/// A length (-1: null) and so many bytes. `None`: malformed.
fn take_nullable(bytes: &mut Bytes) -> Option<Option<Bytes>> {
    match take_varint(bytes)? {
        -1 => Some(None),
        length => take(bytes, usize::try_from(length).ok()?).map(Some),
    }
}

/// Seven bits a byte, the lowest first, signs folded to the lowest bit.
fn take_varint(bytes: &mut Bytes) -> Option<i64> {
    let mut folded = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        folded |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((folded >> 1) as i64 ^ -((folded & 1) as i64));
        }
    }
    None
}

/// A record to write. Offsets are the broker's to give.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outgoing {
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

/// One batch, not packed, of at least one record.
pub(super) fn encode(records: &[Outgoing], at: EpochMillis) -> Bytes {
    let time = i64::try_from(at.0).unwrap_or(i64::MAX);
    let count = i32::try_from(records.len()).unwrap_or(i32::MAX);
    let mut out = BytesMut::new();
    out.put_i64(0);
    out.put_i32(0); // length, below
    out.put_i32(-1); // epoch of the leader: the broker's to write
    out.put_u8(MAGIC);
    out.put_u32(0); // checksum, below
    out.put_u16(0);
    out.put_i32(count - 1);
    out.put_i64(time);
    out.put_i64(time);
    out.put_i64(-1); // no producer id, no epoch, no sequence
    out.put_i16(-1);
    out.put_i32(-1);
    out.put_i32(count);
    let mut body = Vec::new();
    for (number, record) in records.iter().enumerate() {
        body.clear();
        body.put_u8(0);
        put_varint(&mut body, 0);
        put_varint(&mut body, number as i64);
        put_nullable(&mut body, record.key.as_deref());
        put_nullable(&mut body, record.value.as_deref());
        put_varint(&mut body, record.headers.len() as i64);
        for header in &record.headers {
            put_nullable(&mut body, Some(&header.name));
            put_nullable(&mut body, header.value.as_deref());
        }
        put_varint(&mut out, body.len() as i64);
        out.put_slice(&body);
    }
    let length = u32::try_from(out.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    out[8..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    let checksum = crc32c::crc32c(&out[CHECKED_AT..]);
    out[CHECKED_AT - 4..CHECKED_AT].copy_from_slice(&checksum.to_be_bytes());
    out.freeze()
}

fn put_nullable(out: &mut impl bytes::BufMut, bytes: Option<&[u8]>) {
    put_varint(out, bytes.map_or(-1, |bytes| bytes.len() as i64));
    out.put_slice(bytes.unwrap_or_default());
}

fn put_varint(out: &mut impl bytes::BufMut, value: i64) {
    let mut folded = (value << 1 ^ value >> 63) as u64;
    while folded >= 0x80 {
        out.put_u8(folded as u8 | 0x80);
        folded >>= 7;
    }
    out.put_u8(folded as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(value: &str) -> Outgoing {
        Outgoing {
            key: Some(Bytes::from_static(b"k")),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            headers: Vec::new(),
        }
    }

    /// A batch at an offset, with other attributes and producer than `encode` writes.
    fn batch(values: &[&str], base: i64, attributes: u16, producer: i64) -> Bytes {
        let records: Vec<Outgoing> = values.iter().map(|value| outgoing(value)).collect();
        reseal(&encode(&records, EpochMillis(5)), |bytes| {
            bytes[..8].copy_from_slice(&base.to_be_bytes());
            bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
            bytes[43..51].copy_from_slice(&producer.to_be_bytes());
        })
    }

    /// Changes a batch and makes its checksum right again.
    fn reseal(batch: &Bytes, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut bytes = batch.to_vec();
        change(&mut bytes);
        let length = u32::try_from(bytes.len() - PREFIX_BYTES).expect("short");
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        let checksum = crc32c::crc32c(&bytes[CHECKED_AT..]);
        bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
        bytes.into()
    }

    fn control(kind: u16, base: i64, producer: i64) -> Bytes {
        let key = [0_u16.to_be_bytes(), kind.to_be_bytes()].concat();
        let record = Outgoing { key: Some(key.into()), value: None, headers: Vec::new() };
        reseal(&encode(&[record], EpochMillis(5)), |bytes| {
            bytes[..8].copy_from_slice(&base.to_be_bytes());
            bytes[21..23].copy_from_slice(&(CONTROL | TRANSACTIONAL).to_be_bytes());
            bytes[43..51].copy_from_slice(&producer.to_be_bytes());
        })
    }

    fn join(batches: &[Bytes]) -> Bytes {
        batches.concat().into()
    }

    fn values(decoded: &Decoded) -> Vec<(u64, String)> {
        let text = |record: &Record| {
            String::from_utf8_lossy(record.value.as_deref().unwrap_or(b"~")).into_owned()
        };
        decoded.records.iter().map(|record| (record.offset, text(record))).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let header = |name: &'static str, value: Option<&'static str>| Header {
            name: Bytes::from_static(name.as_bytes()),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
        };
        let records = [
            Outgoing { key: None, value: None, headers: Vec::new() },
            Outgoing {
                key: Some(Bytes::new()),
                value: Some(vec![7; 300].into()),
                headers: vec![
                    header("z", Some("1")),
                    header("a", None),
                    header("z", Some("")),
                    header("", Some("2")),
                ],
            },
        ];
        let decoded = decode(encode(&records, EpochMillis(1_234)), 0, &[]);
        assert_eq!((decoded.next, decoded.bad.len()), (2, 0));
        for (number, (record, written)) in decoded.records.iter().zip(&records).enumerate() {
            assert_eq!(record.offset, number as u64);
            assert_eq!(record.appended_at, EpochMillis(1_234));
            assert_eq!((&record.key, &record.value), (&written.key, &written.value));
            assert_eq!(record.headers, written.headers);
        }
    }

    #[test]
    fn starts_in_the_middle_of_a_batch_and_stops_before_a_cut_one() {
        let whole = join(&[batch(&["a", "b", "c"], 10, 0, -1), batch(&["d"], 13, 0, -1)]);
        let decoded = decode(whole.clone(), 11, &[]);
        assert_eq!(values(&decoded), [(11, "b".into()), (12, "c".into()), (13, "d".into())]);
        assert_eq!(decoded.next, 14);
        for cut in 1..whole.len() {
            let decoded = decode(whole.slice(..cut), 10, &[]);
            let first = batch(&["a", "b", "c"], 10, 0, -1).len();
            let expected = if cut < first { (0, 10) } else { (3, 13) };
            assert_eq!((decoded.records.len(), decoded.next), expected, "cut at {cut}");
            assert!(decoded.bad.is_empty());
        }
    }

    #[test]
    fn aborted_transactions_and_control_records_are_passed() {
        let bytes = join(&[
            batch(&["gone"], 0, TRANSACTIONAL, 7),
            batch(&["kept"], 1, TRANSACTIONAL, 8),
            batch(&["plain"], 2, 0, 7),
            control(ABORT, 3, 7),
            batch(&["again"], 4, TRANSACTIONAL, 7),
            control(1, 5, 7),
            control(1, 6, 8),
        ]);
        let aborted = [Aborted { producer: 7, first_offset: 0 }];
        let decoded = decode(bytes.clone(), 0, &aborted);
        let kept = [(1, "kept".into()), (2, "plain".into()), (4, "again".into())];
        assert_eq!((values(&decoded), decoded.next), (kept.to_vec(), 7));
        assert_eq!(decode(bytes, 0, &[]).records.len(), 4);
        let only_control = decode(control(1, 9, 7), 9, &[]);
        assert_eq!((only_control.records.len(), only_control.next), (0, 10));
    }

    #[test]
    fn a_bad_batch_is_one_record_of_its_bytes() {
        let good = batch(&["after"], 8, 0, -1);
        let cases: [(Bytes, BatchError, u64); 5] = [
            (
                {
                    let mut bytes = batch(&["a", "b"], 6, 0, -1).to_vec();
                    let last = bytes.len() - 1;
                    bytes[last] ^= 1;
                    bytes.into()
                },
                BatchError::Checksum,
                7,
            ),
            (batch(&["a", "b"], 6, 5, -1), BatchError::Codec(5), 8),
            (reseal(&batch(&["a", "b"], 6, 0, -1), |b| b[16] = 1), BatchError::Magic(1), 7),
            (
                reseal(&batch(&["a", "b"], 6, 0, -1), |bytes| bytes.truncate(bytes.len() - 3)),
                BatchError::Record,
                8,
            ),
            (reseal(&batch(&["a"], 6, 0, -1), |b| b.truncate(40)), BatchError::Short, 7),
        ];
        for (bad, error, next) in cases {
            let alone = decode(bad.clone(), 6, &[]);
            assert_eq!((alone.next, &alone.bad), (next, &vec![(6, error.clone())]));
            assert_eq!(alone.records.len(), 1);
            assert_eq!(alone.records[0].value.as_ref(), Some(&bad), "{error}");
            let followed = decode(join(&[bad, good.clone()]), 6, &[]);
            assert_eq!(values(&followed).last(), Some(&(8, "after".to_owned())), "{error}");
            assert_eq!(followed.next, 9);
        }
    }

    #[test]
    fn no_codec_unpacks_without_a_bound() {
        let large = vec![0_u8; limits::UNPACKED_BYTES_MAX + 1];
        let gzip = {
            let level = flate2::Compression::fast();
            let mut packer = flate2::read::GzEncoder::new(&large[..], level);
            let mut out = Vec::new();
            packer.read_to_end(&mut out).expect("memory");
            out
        };
        let snappy = snap::raw::Encoder::new().compress_vec(&large).expect("memory");
        let lz4 = {
            let mut packer = lz4::EncoderBuilder::new().build(Vec::new()).expect("memory");
            std::io::Write::write_all(&mut packer, &large).expect("memory");
            packer.finish().0
        };
        let zstd = zstd::encode_all(&large[..], 1).expect("memory");
        for (codec, packed) in [(1, gzip), (2, snappy), (3, lz4), (4, zstd)] {
            assert_eq!(unpack(codec, packed.into()), Err(BatchError::TooLarge), "codec {codec}");
        }
    }
}
