use super::*;
use outerloop_core::{contract::awkward_params, Key, OptState};
use proptest::prelude::*;
use serde::Deserialize;
use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    step: u64,
    name: String,
    bytes: Vec<u8>,
    key: Option<Key>,
    lanes: Vec<OptState>,
    weights: Vec<f64>,
}

fn state(seed: u64) -> State {
    let lane =
        |i| OptState::new(&awkward_params(Key::new(seed).fold_in(i)), Some(50)).with_slot("momentum", 3, 0.5);
    State {
        step: seed,
        name: "pes".into(),
        bytes: vec![7; 5],
        key: Some(Key::new(seed)),
        lanes: (0..2).map(lane).collect(),
        weights: vec![1.0 / 3.0, f64::MIN_POSITIVE],
    }
}

fn file(seed: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.ckpt");
    save(&path, Kind::TRAINING, &state(seed)).unwrap();
    fs::read(path).unwrap()
}

fn refusal(file: &[u8]) -> String {
    parse::<State>(file, Kind::TRAINING).expect_err("the file must be refused")
}

/// A file with a correct header around any payload.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut file = Vec::from(MAGIC);
    file.extend(VERSION.to_le_bytes());
    file.extend(Kind::TRAINING.0);
    file.extend((payload.len() as u64).to_le_bytes());
    file.extend(checksum(&file[8..24], payload).to_le_bytes());
    file.extend(payload);
    file
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let good = file(1);
    assert_eq!(parse::<State>(&good, Kind::TRAINING).unwrap(), state(1));
    assert!(good.len() > 500, "{}", good.len());
    for n in 0..good.len() {
        let why = refusal(&good[..n]);
        assert!(why.starts_with("truncated"), "{n} bytes: {why}");
    }
    let mut bad = good.clone();
    for i in 0..8 * good.len() {
        bad[i / 8] ^= 1 << (i % 8);
        refusal(&bad);
        bad[i / 8] = good[i / 8];
    }
}

#[test]
fn refusals_say_what_was_expected_and_what_came() {
    let good = file(1);
    let patched = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        refusal(&bad)
    };
    assert_eq!(refusal(b"PK\x03\x04 a zip file"), "not a checkpoint: it starts with \"PK\\x03\\x04 a z\"");
    assert_eq!(refusal(b""), "truncated: a checkpoint has a header of 32 bytes, got 0");
    assert_eq!(
        patched(8, 9),
        "checkpoint format version 9, but this build reads version 7: upgrade outerloop"
    );
    assert_eq!(patched(8, 0), "checkpoint format version 0, expected 7");
    assert!(patched(40, good[40] ^ 1).starts_with("corrupt: the checksum is"));
    assert!(refusal(&[&good[..], b"xy"].concat()).starts_with("2 unexpected bytes after the payload"));
    assert_eq!(parse::<State>(&good, Kind::EVALUATION).unwrap_err(), "holds `TRNG`, expected `EVAL`");
    let mut longer = good[HEADER..].to_vec();
    longer.push(0);
    assert!(refusal(&sealed(&longer)).ends_with("1 bytes are left over"));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.ckpt");
    assert!(matches!(load::<State>(&path, Kind::TRAINING), Err(Error::Io { .. })));
    fs::write(&path, &good[..100]).unwrap();
    let message = load::<State>(&path, Kind::TRAINING).unwrap_err().to_string();
    let want =
        format!("{}: truncated: expected {} bytes of payload, got 68", path.display(), good.len() - HEADER);
    assert_eq!(message, want);
}

#[test]
fn saving_twice_gives_the_same_bytes() {
    assert_eq!(file(4), file(4));
    assert_ne!(file(4), file(5));
}

#[test]
fn nan_bits_and_negative_zero_survive() {
    let bits = [0x7fc0_1234u32, 0xffc0_0001, 0x8000_0000, 0x0000_0001, 0xff80_0000];
    let floats: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
    let mut payload = Vec::new();
    codec::encode(&floats, &mut payload).unwrap();
    let back: Vec<f32> = codec::decode(&payload).unwrap();
    assert_eq!(back.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), bits);
}

/// With a correct checksum: only the codec's limit stands between the length and the allocator,
/// which would abort the process.
#[test]
fn hostile_lengths_do_not_allocate() {
    for len in [1u64 << 20, 1 << 40, 1 << 60, u64::MAX] {
        let mut payload = len.to_le_bytes().to_vec();
        payload.extend([1; 40]);
        let file = sealed(&payload);
        assert!(parse::<String>(&file, Kind::TRAINING).is_err());
        assert!(parse::<Vec<f64>>(&file, Kind::TRAINING).is_err());
        assert!(parse::<Vec<OptState>>(&file, Kind::TRAINING).is_err());
        let mut payload = 3u64.to_le_bytes().to_vec(); // `step`, then the length of `name`
        payload.extend(len.to_le_bytes());
        refusal(&sealed(&payload));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn round_trip(
        step: u64, name in ".*", bytes: Vec<u8>, seed: Option<u64>, lanes in 0..3u64, weights: Vec<f64>,
    ) {
        let s = State {
            step, name, bytes, key: seed.map(Key::new),
            lanes: (0..lanes).map(|i| OptState::new(&awkward_params(Key::new(i)), None)).collect(),
            weights: weights.into_iter().filter(|w| !w.is_nan()).collect(),
        };
        let mut payload = Vec::new();
        codec::encode(&s, &mut payload).unwrap();
        prop_assert_eq!(parse::<State>(&sealed(&payload), Kind::TRAINING).unwrap(), s);
    }

    #[test]
    fn arbitrary_payloads_never_panic(payload: Vec<u8>) {
        let _ = parse::<State>(&sealed(&payload), Kind::TRAINING);
        let _ = parse::<State>(&payload, Kind::TRAINING);
    }
}

const KILL_PATH: &str = "OUTERLOOP_TEST_KILL_PATH";

/// Large enough that a save takes a while: 400 kB, all elements equal to `step`.
fn big(step: u64) -> (u64, Vec<f32>) {
    (step, vec![step as f32; 100_000])
}

/// The child of `survives_sigkill`: saves until it is killed. Does nothing in an ordinary run.
#[test]
fn child_saves_in_a_loop() {
    if let Ok(path) = std::env::var(KILL_PATH) {
        for step in 1.. {
            save(&path, Kind::TRAINING, &big(step)).unwrap();
        }
    }
}

#[cfg(unix)]
#[test]
fn survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("run.ckpt");
    save(&path, Kind::TRAINING, &big(0)).unwrap();
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoint::tests::child_saves_in_a_loop"])
            .env(KILL_PATH, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The child counts from 1: wait until it has saved, then hit a different phase each round.
        save(&path, Kind::TRAINING, &big(0)).unwrap();
        let saved = (0..3000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            load::<(u64, Vec<f32>)>(&path, Kind::TRAINING).unwrap().0 > 0
        });
        std::thread::sleep(Duration::from_micros(370 * round));
        child.kill().unwrap(); // SIGKILL
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
        assert!(saved, "the child never saved: the test proves nothing");
        let (step, data): (u64, Vec<f32>) = load(&path, Kind::TRAINING).unwrap();
        assert_eq!((step, data), big(step), "neither the old content nor the new");
        outerloop_core::atomic::sweep_temp(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
