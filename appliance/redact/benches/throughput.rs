//! How fast output passes the redactor, in bytes per second.
//!
//! `clean` is what services print most of the time: log lines in which no secret stands. It is pushed in pieces
//! of 64 KiB, the size of a pipe, and once in single lines. `json` has escapes, `colours` a control
//! sequence in each word; `dense` has a secret in each line, in one encoding after the other. Bias: the text repeats
//! every MiB, so branch predictors do better than on real output; secrets are random, so no two share a beginning.

#![allow(missing_docs, clippy::unwrap_used)]

use base64::Engine as _;
use cofferdam_redact::Redactor;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SIZE: usize = 1 << 20;
const PIPE: usize = 64 * 1024;

/// A small generator (xorshift64) keeps the input the same from run to run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below
    }

    fn text(&mut self, length: usize) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        (0..length).map(|_| char::from(*LETTERS.get(self.next(LETTERS.len())).unwrap())).collect()
    }
}

fn secrets(count: usize) -> Vec<(String, String)> {
    let mut random = Random(0x5eed);
    (0..count).map(|index| (format!("secret-{index}"), random.text(16 + index % 17))).collect()
}

fn words(random: &mut Random) -> String {
    const WORDS: [&str; 16] = [
        "request",
        "served",
        "GET",
        "/api/v1/items",
        "status=200",
        "in",
        "12ms",
        "user",
        "42",
        "connection",
        "closed",
        "by",
        "peer",
        "cache",
        "miss",
        "127.0.0.1:8080",
    ];
    (0..9).map(|_| *WORDS.get(random.next(WORDS.len())).unwrap()).collect::<Vec<_>>().join(" ")
}

fn output(mut line: impl FnMut(&mut Random, usize) -> String) -> Vec<u8> {
    let mut random = Random(0xc0ffee);
    let mut text = String::with_capacity(SIZE + 256);
    let mut count = 0;
    while text.len() < SIZE {
        text += &line(&mut random, count);
        text.push('\n');
        count += 1;
    }
    text.into_bytes()
}

fn throughput(c: &mut Criterion) {
    let clean = output(|random, n| format!("2026-11-22T03:07:20.{n:03}Z INFO {}", words(random)));
    let json =
        output(|random, n| format!("{{\"at\":{n},\"message\":\"said \\\"{}\\\"\\n\"}}", words(random)));
    let colours = output(|random, _| {
        words(random).split(' ').map(|word| format!("\x1b[3{}m{word}\x1b[0m ", word.len() % 8)).collect()
    });
    let mut group = c.benchmark_group("redact");
    group.sample_size(20).throughput(Throughput::Bytes(SIZE as u64));
    for count in [1, 8, 16, 32, 64] {
        let redactor = Redactor::new(secrets(count)).unwrap();
        let dense = output(|random, n| {
            let (_, secret) = secrets(count).swap_remove(n % count);
            let shown = match n % 4 {
                0 => secret,
                1 => base64::engine::general_purpose::STANDARD.encode(secret),
                2 => hex::encode(secret),
                _ => secret.bytes().map(|byte| format!("%{byte:02X}")).collect(),
            };
            format!("{} {shown}", words(random))
        });
        let mut run = |name: &str, text: &[u8], piece: usize| {
            let mut out = Vec::with_capacity(2 * SIZE);
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                let mut stream = redactor.stream();
                bencher.iter(|| {
                    out.clear();
                    text.chunks(piece).for_each(|piece| stream.push(piece, &mut out));
                    stream.finish(&mut out);
                    out.len()
                });
            });
        };
        run("clean", &clean, PIPE);
        run("clean-lines", &clean, 96);
        run("json", &json, PIPE);
        run("colours", &colours, PIPE);
        run("dense", &dense, PIPE);
    }
    group.finish();
    c.bench_function("prepare/64", |bencher| bencher.iter(|| Redactor::new(secrets(64)).unwrap()));
}

criterion_group!(benches, throughput);
criterion_main!(benches);
