//! Something between Kafka's clients and a broker that loses what a test wants to be lost.
//!
//! Each message begins with its length; a request goes on with the number of what is asked, a version, and a number that its
//! answer begins with.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Ends a transaction, as Kafka numbers its requests.
pub const END_TRANSACTION: i16 = 26;
const MESSAGE_MAX_BYTES: usize = 64 * 1024 * 1024;
const NOTHING: i16 = -1;

/// What is lost, with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A request never arrives.
    Request(i16),
    /// It arrives, and its answer does not.
    Answer(i16),
}

/// Passes on what comes, but for what is lost.
#[derive(Clone, Debug)]
pub struct Between {
    requests: Arc<AtomicI16>,
    answers: Arc<AtomicI16>,
    lost: Arc<AtomicUsize>,
}

impl Between {
    /// Listens at `front`, and passes on to `behind`.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub async fn listen(front: SocketAddr, behind: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(front).await?;
        let between = Self {
            requests: Arc::new(AtomicI16::new(NOTHING)),
            answers: Arc::new(AtomicI16::new(NOTHING)),
            lost: Arc::default(),
        };
        let passing = between.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(broker) = TcpStream::connect(behind).await {
                    passing.clone().connect(client, broker);
                }
            }
        });
        Ok(between)
    }

    /// Loses this from now on, or nothing.
    pub fn lose(&self, loss: Option<Loss>) {
        let (request, answer) = match loss {
            Some(Loss::Request(number)) => (number, NOTHING),
            Some(Loss::Answer(number)) => (NOTHING, number),
            None => (NOTHING, NOTHING),
        };
        self.requests.store(request, Ordering::SeqCst);
        self.answers.store(answer, Ordering::SeqCst);
    }

    /// How many messages were lost.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    fn connect(self, client: TcpStream, broker: TcpStream) {
        let (from_client, to_client) = client.into_split();
        let (from_broker, to_broker) = broker.into_split();
        let unanswered = Arc::new(Mutex::new(Vec::new()));
        let other = (self.clone(), Arc::clone(&unanswered));
        tokio::spawn(async move {
            let asking = self.pass_requests(from_client, to_broker, &unanswered);
            let answering = other.0.pass_answers(from_broker, to_client, &other.1);
            // Both sides end with the first of them.
            tokio::select! {
                () = asking => {}
                () = answering => {}
            }
        });
    }

    async fn pass_requests(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, unanswered: &Mutex<Vec<[u8; 4]>>) {
        while let Some(message) = message(&mut from).await {
            let asked = message.get(4..6).map_or(NOTHING, |number| i16::from_be_bytes([number[0], number[1]]));
            if asked == self.requests.load(Ordering::SeqCst) {
                self.lost.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if asked == self.answers.load(Ordering::SeqCst)
                && let Some(number) = message.get(8..12).and_then(|number| number.try_into().ok())
            {
                unanswered.lock().unwrap_or_else(PoisonError::into_inner).push(number);
            }
            if to.write_all(&message).await.is_err() {
                return;
            }
        }
    }

    async fn pass_answers(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, unanswered: &Mutex<Vec<[u8; 4]>>) {
        while let Some(message) = message(&mut from).await {
            if answers_one_of(&message, unanswered) {
                self.lost.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if to.write_all(&message).await.is_err() {
                return;
            }
        }
    }
}

fn answers_one_of(answer: &[u8], requests: &Mutex<Vec<[u8; 4]>>) -> bool {
    let requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
    answer.get(4..8).is_some_and(|number| requests.iter().any(|request| request == number))
}

/// The next message with its length; none at the end.
async fn message(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await.ok()?;
    let bytes = usize::try_from(i32::from_be_bytes(length)).ok().filter(|bytes| *bytes <= MESSAGE_MAX_BYTES)?;
    let mut message = vec![0; 4 + bytes];
    message[..4].copy_from_slice(&length);
    from.read_exact(&mut message[4..]).await.ok()?;
    Some(message)
}
