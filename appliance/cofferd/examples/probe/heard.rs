//! What a service hears: each byte of a connection up to a silence, told to whoever has sent it.
//!
//! The answer is two words in hexadecimal, with a zero byte before each: what the connection before this one said, and what this one did. Its
//! header `X-Connection` numbers the connection. So a client can tell what became of its request on the way, and whether one that was
//! refused came here all the same.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// After which nothing more is waited for.
const SILENCE: Duration = Duration::from_millis(150);
/// Of one connection.
const MOST: usize = 256 << 10;
/// What was heard before.
static BEFORE: Mutex<Vec<u8>> = Mutex::new(Vec::new());

pub(crate) fn listen(port: u16) {
    let Ok(listener) = TcpListener::bind(("0.0.0.0", port)) else { return };
    for (number, stream) in listener.incoming().flatten().enumerate() {
        std::thread::spawn(move || tell(stream, number));
    }
}

fn tell(mut stream: TcpStream, number: usize) {
    let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
    if stream.set_read_timeout(Some(SILENCE)).is_err() {
        return;
    }
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        heard.extend_from_slice(&piece[..count]);
        if heard.len() > MOST {
            return;
        }
    }
    let before = {
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *before, heard.clone())
    };
    let body = format!("{} {}", hex(&before), hex(&heard));
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nX-Connection: {number}\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("00"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
