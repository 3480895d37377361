//! Reads along an HTTP/2 peer's frame headers before h2 does, and counts the frames that carry nothing of a message:
//! SETTINGS, PING, PRIORITY, WINDOW_UPDATE, RST_STREAM, and types that nobody knows. h2 answers or forgets them in
//! constant memory, but for as long as they come.

use std::cell::Cell;

use super::connection::PREFACE;

/// How many such frames a peer may send within a tick of its connection's clock: without doing anything, which is
/// Envoy's `max_outbound_control_frames`, and for each request or piece of a body. Envoy's ten WINDOW_UPDATE a DATA
/// frame, where a piece may be sent on in several.
const IDLE_CONTROL: u64 = 1_000;
const WORKING_CONTROL: u64 = 100;

/// Length, type, flags and stream (RFC 9113, 4.1).
const HEADER: usize = 9;
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// What the header of a frame says.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    /// In bytes.
    pub(crate) length: usize,
    pub(crate) stream: u32,
}

/// One connection's reader.
#[derive(Debug)]
pub(crate) struct Frames {
    /// What comes before the next frame's header.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
}

impl Frames {
    /// From the client's preface on.
    pub(crate) fn of_client() -> Self {
        Self { skip: PREFACE.len(), ..Self::of_server() }
    }

    /// From the first frame on.
    pub(crate) fn of_server() -> Self {
        Self { skip: 0, header: [0; HEADER], have: 0 }
    }

    /// Reads the next bytes. Gives how many such frames have begun in them.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> u32 {
        let mut control = 0;
        self.each(bytes, |frame| {
            control += u32::from(!matches!(frame.kind, DATA | HEADERS | CONTINUATION));
        });
        control
    }

    /// Reads the next bytes. Gives each frame that has begun in them.
    pub(crate) fn each(&mut self, mut bytes: &[u8], mut begun: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                let [a, b, c, kind, _flags, stream @ ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.have = 0;
                // The first bit says nothing.
                let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                begun(Frame { kind, length: self.skip, stream });
            }
        }
    }
}

/// Such frames within a tick.
#[derive(Debug, Default)]
pub(crate) struct Flood {
    control: Cell<u64>,
    /// What the connection had done when the tick began.
    work: Cell<u64>,
}

impl Flood {
    pub(crate) fn add(&self, control: u32) {
        self.control.set(self.control.get() + u64::from(control));
    }

    /// Whether there are more than a peer needs that has come to do so much `work`.
    pub(crate) fn is_one(&self, work: u64) -> bool {
        self.control.get() > IDLE_CONTROL + WORKING_CONTROL * (work - self.work.get())
    }

    /// A tick is over.
    pub(crate) fn forget(&self, work: u64) {
        self.control.set(0);
        self.work.set(work);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        [&[a, b, c, kind, 0, 0, 0, 0, 1], payload].concat()
    }

    proptest! {
        #[test]
        fn counts_what_is_no_data_and_no_head_however_it_is_cut(
            frames in prop::collection::vec((0_u8..20, prop::collection::vec(any::<u8>(), 0..40)), 0..30),
            piece in 1_usize..60,
        ) {
            let mut bytes = PREFACE.to_vec();
            frames.iter().for_each(|(kind, payload)| bytes.extend(frame(*kind, payload)));
            let mut reader = Frames::of_client();
            let counted: u32 = bytes.chunks(piece).map(|piece| reader.read(piece)).sum();
            let control = frames.iter().filter(|(kind, _)| ![0, 1, 9].contains(kind)).count();
            prop_assert_eq!(counted as usize, control);
        }
    }
}
