//! TensorBoard event files, written by hand: TFRecord framing around a few protobuf fields.
//!
//! A record is `length u64, masked CRC32C of the length, data, masked CRC32C of the data`, little
//! endian. Reference: `tensorflow/core/lib/io/record_writer.h` and
//! `tensorflow/core/util/event.proto`, `framework/summary.proto`.

use super::MetricWriter;
use outerloop_core::{Error, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const FLUSH_EVERY: Duration = Duration::from_secs(2);

/// Writes scalars and text for TensorBoard.
///
/// Every writer makes a file of its own in the directory: after a crash nothing is appended to a
/// torn record, and TensorBoard joins the files (a resumed run's values replace those that the
/// killed one wrote for the same steps). Scalars are stored as f32, with the wall time.
pub struct TensorBoardWriter {
    path: PathBuf,
    file: BufWriter<File>,
    flushed: Instant,
}

impl TensorBoardWriter {
    /// A new event file in `dir`, which is created if needed.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let (path, file) = new_file(dir)?;
        let mut writer = TensorBoardWriter { path, file: BufWriter::new(file), flushed: Instant::now() };
        writer.record(Message::default().double(1, wall_time().as_secs_f64()).bytes(3, b"brain.Event:2"))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Markdown for the Text tab: a configuration, a note.
    pub fn text(&mut self, step: u64, tag: &str, markdown: &str) -> Result<()> {
        const DT_STRING: u64 = 7;
        let shape = Message::default().message(2, Message::default().int(1, 1));
        let tensor = Message::default().int(1, DT_STRING).message(2, shape).bytes(8, markdown.as_bytes());
        let plugin = Message::default().message(1, Message::default().bytes(1, b"text"));
        let tag = format!("{tag}/text_summary");
        self.value(step, Message::default().bytes(1, tag.as_bytes()).message(8, tensor).message(9, plugin))
    }

    fn value(&mut self, step: u64, value: Message) -> Result<()> {
        let event = Message::default()
            .double(1, wall_time().as_secs_f64())
            .int(2, step)
            .message(5, Message::default().message(1, value));
        self.record(event)?;
        if self.flushed.elapsed() >= FLUSH_EVERY {
            self.flush()?;
        }
        Ok(())
    }

    fn record(&mut self, Message(data): Message) -> Result<()> {
        let len = (data.len() as u64).to_le_bytes();
        let parts =
            [&len[..], &masked_crc32c(&len).to_le_bytes(), &data, &masked_crc32c(&data).to_le_bytes()];
        parts.iter().try_for_each(|p| self.file.write_all(p)).map_err(|e| Error::io(&self.path, e))
    }
}

impl MetricWriter for TensorBoardWriter {
    fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<()> {
        self.value(step, Message::default().bytes(1, tag.as_bytes()).float(2, value as f32))
    }

    fn flush(&mut self) -> Result<()> {
        self.flushed = Instant::now();
        self.file.flush().map_err(|e| Error::io(&self.path, e))
    }
}

/// Time since 1970; zero if the clock stands before that.
fn wall_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn new_file(dir: &Path) -> Result<(PathBuf, File)> {
    let (seconds, process) = (wall_time().as_secs(), std::process::id());
    // TensorBoard takes every name that contains "tfevents" and reads them in order of name.
    let mut n = 0;
    loop {
        let path = dir.join(format!("events.out.tfevents.{seconds:010}.{process}.{n}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
            Err(e) => return Err(Error::io(path, e)),
        }
    }
}

/// A protobuf message under construction: each method appends one field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }
    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }
    fn int(mut self, field: u64, v: u64) -> Self {
        self.tag(field, 0);
        self.varint(v);
        self
    }
    fn double(mut self, field: u64, v: f64) -> Self {
        self.tag(field, 1);
        self.0.extend(v.to_le_bytes());
        self
    }
    fn float(mut self, field: u64, v: f32) -> Self {
        self.tag(field, 5);
        self.0.extend(v.to_le_bytes());
        self
    }
    fn bytes(mut self, field: u64, v: &[u8]) -> Self {
        self.tag(field, 2);
        self.varint(v.len() as u64);
        self.0.extend(v);
        self
    }
    fn message(self, field: u64, Message(v): Message) -> Self {
        self.bytes(field, &v)
    }
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) of each byte.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut bit) = (i as u32, 0);
        while bit < 8 {
            c = if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 };
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |c, b| CRC_TABLE[usize::from(c as u8 ^ b)] ^ (c >> 8))
}

/// The mask keeps a checksum of data that holds checksums from being weak (record_writer.h).
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_known_vectors() {
        // RFC 3720, B.4, and the catalogue's check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&std::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46dd_794e);
        assert_eq!(crc32c(&std::array::from_fn::<u8, 32, _>(|i| 31 - i as u8)), 0x113f_db5c);
    }

    /// The records' data; panics on a wrong checksum or a torn record.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        fn take<'a>(file: &mut &'a [u8], n: usize) -> &'a [u8] {
            let (head, tail) = file.split_at(n);
            *file = tail;
            head
        }
        let mut out = Vec::new();
        while !file.is_empty() {
            let len = take(&mut file, 8);
            assert_eq!(take(&mut file, 4), masked_crc32c(len).to_le_bytes());
            let data = take(&mut file, u64::from_le_bytes(len.try_into().unwrap()) as usize);
            assert_eq!(take(&mut file, 4), masked_crc32c(data).to_le_bytes());
            out.push(data.to_vec());
        }
        out
    }

    /// A message's fields in order: number and raw content (a varint as 8 bytes).
    fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(data: &mut &[u8]) -> u64 {
            let (mut v, mut shift) = (0, 0);
            loop {
                let b = data[0];
                *data = &data[1..];
                v |= u64::from(b & 0x7f) << shift;
                shift += 7;
                if b < 0x80 {
                    return v;
                }
            }
        }
        let mut out = Vec::new();
        while !data.is_empty() {
            let tag = varint(&mut data);
            let n = match tag & 7 {
                0 => {
                    out.push((tag >> 3, varint(&mut data).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut data) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((tag >> 3, data[..n].to_vec()));
            data = &data[n..];
        }
        out
    }

    fn field(data: &[u8], path: &[u64]) -> Vec<u8> {
        path.iter().fold(data.to_vec(), |data, number| {
            let found = fields(&data).into_iter().find(|(n, _)| n == number);
            found.unwrap_or_else(|| panic!("no field {number} on the path {path:?}")).1
        })
    }

    #[test]
    fn scalars_and_text_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = TensorBoardWriter::create(dir.path()).unwrap();
        w.row(1 << 40, &[("outer/loss", 0.5), ("nan", f64::NAN), ("inf", f64::NEG_INFINITY)]).unwrap();
        w.text(3, "config", &"long ".repeat(100)).unwrap();
        w.flush().unwrap();
        assert!(w.path().file_name().unwrap().to_str().unwrap().contains("tfevents"));
        let events = records(&fs::read(w.path()).unwrap());
        assert_eq!(events.len(), 5);
        assert_eq!(field(&events[0], &[3]), b"brain.Event:2");
        let float = |e: &[u8]| f32::from_le_bytes(field(e, &[5, 1, 2]).try_into().unwrap());
        assert_eq!(field(&events[1], &[2]), (1u64 << 40).to_le_bytes());
        assert_eq!(field(&events[1], &[5, 1, 1]), b"outer/loss");
        assert_eq!(float(&events[1]), 0.5);
        assert!(float(&events[2]).is_nan());
        assert_eq!(float(&events[3]), f32::NEG_INFINITY);
        assert_eq!(field(&events[4], &[5, 1, 1]), b"config/text_summary");
        assert_eq!(field(&events[4], &[5, 1, 8, 8]), "long ".repeat(100).as_bytes());
        assert_eq!(field(&events[4], &[5, 1, 9, 1, 1]), b"text");
    }

    #[test]
    fn every_writer_has_its_own_file_and_a_drop_writes_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        for step in 0..3 {
            TensorBoardWriter::create(dir.path()).unwrap().scalar(step, "loss", 1.0).unwrap();
        }
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 3);
        for f in files {
            assert_eq!(records(&fs::read(f).unwrap()).len(), 2);
        }
    }
}
