//! An upstream whose answers tell who gave them and to what, however long they are.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// It ends with its owner, and its connections with it.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    open: Mutex<HashMap<SocketAddr, TcpStream>>,
    /// Whoever asks for `/wait` is answered.
    released: AtomicBool,
}

/// What `name` answers to a path: that, again and again, as many bytes as its query says.
pub(crate) fn answer(name: &str, path: &str) -> String {
    let length = path.split_once('?').map_or(name.len(), |(_, length)| length.parse().unwrap());
    let said = format!("{name} to {path}\n");
    if length <= name.len() {
        name.to_owned()
    } else {
        said.repeat(length / said.len() + 1)[..length].to_owned()
    }
}

impl Upstream {
    pub(crate) fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let of_thread = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, Ok(peer)) = (Arc::clone(&of_thread), stream.peer_addr()) else { continue };
                state.open.lock().unwrap().insert(peer, stream.try_clone().unwrap());
                std::thread::spawn(move || {
                    // Whoever goes is no matter of its.
                    let _ = serve(name, &stream, &state);
                    state.open.lock().unwrap().remove(&peer);
                });
            }
        });
        Self { address, state }
    }

    pub(crate) fn release(&self) {
        self.state.released.store(true, Ordering::Release);
    }

    pub(crate) fn close_all(&self) {
        for (_, stream) in self.state.open.lock().unwrap().drain() {
            // It may be closed.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.close_all();
    }
}

fn serve(name: &str, mut stream: &TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut first, mut line) = (String::new(), String::new());
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        let path = first.split(' ').nth(1).unwrap_or("/");
        while path == "/wait" && !state.released.load(Ordering::Acquire) {
            #[allow(clippy::disallowed_methods, reason = "between two looks")]
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let body = answer(name, path);
        stream.write_all(
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        )?;
    }
}
