//! Something between Kafka's clients and a broker that loses what a test wants to be lost, or tells of errors that there were not.
//!
//! Each message begins with its length; a request goes on with the number of what is asked, a version, and a number that its
//! answer begins with.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Writes records, as Kafka numbers its requests.
pub const PRODUCE: i16 = 0;
/// Says that a member of a group is alive.
pub const HEARTBEAT: i16 = 12;
/// Takes a group's positions into a transaction.
pub const ADD_OFFSETS: i16 = 25;
/// Ends a transaction.
pub const END_TRANSACTION: i16 = 26;
const MESSAGE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// The first version of [`PRODUCE`] whose answer is laid out as [`place_of_error`] reads it.
const PRODUCE_VERSION: i16 = 9;

/// What is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A request never arrives; the connection is lost with it.
    Request(i16),
    /// It arrives, and its answer does not; the connection is lost with it.
    Answer(i16),
    /// It is done, and answered with this error of Kafka's, this often.
    Error(i16, i16, usize),
}

/// Passes on what comes, but for what is lost.
#[derive(Clone, Debug)]
pub struct Between {
    loss: Arc<Mutex<Option<Loss>>>,
    lost: Arc<AtomicUsize>,
}

/// A request whose answer is to be spoilt.
#[derive(Clone, Copy)]
struct Spoilt {
    number: [u8; 4],
    version: i16,
    how: Loss,
}

impl Between {
    /// Listens at `front`, and passes on to `behind`.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub async fn listen(front: SocketAddr, behind: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(front).await?;
        let between = Self { loss: Arc::default(), lost: Arc::default() };
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

    /// Spoils this from now on, or nothing.
    pub fn lose(&self, loss: Option<Loss>) {
        *lock(&self.loss) = loss;
    }

    /// How many messages were spoilt.
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

    /// What becomes of a request, if it is not passed on and answered as it should be.
    fn spoils(&self, asked: i16) -> Option<Loss> {
        let mut loss = lock(&self.loss);
        match &mut *loss {
            Some(Loss::Request(number) | Loss::Answer(number)) if *number == asked => *loss,
            Some(Loss::Error(number, error, times)) if *number == asked && *times > 0 => {
                *times -= 1;
                Some(Loss::Error(asked, *error, 1))
            }
            _ => None,
        }
    }

    async fn pass_requests(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, unanswered: &Mutex<Vec<Spoilt>>) {
        while let Some(message) = message(&mut from).await {
            let number_at = |at: usize| message.get(at..at + 2).map(|two| i16::from_be_bytes([two[0], two[1]]));
            let spoilt = number_at(4).and_then(|asked| self.spoils(asked));
            if let Some(Loss::Request(_)) = spoilt {
                self.lost.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if let (Some(how), Some(version)) = (spoilt, number_at(6))
                && let Some(number) = message.get(8..12).and_then(|number| number.try_into().ok())
            {
                lock(unanswered).push(Spoilt { number, version, how });
            }
            if to.write_all(&message).await.is_err() {
                return;
            }
        }
    }

    async fn pass_answers(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, unanswered: &Mutex<Vec<Spoilt>>) {
        while let Some(mut message) = message(&mut from).await {
            let is_answer = |request: &Spoilt| message.get(4..8) == Some(&request.number);
            let spoilt = lock(unanswered).iter().find(|request| is_answer(request)).copied();
            match spoilt.map(|spoilt| (spoilt.how, spoilt.version)) {
                Some((Loss::Error(asked, error, _), version)) => {
                    let place = place_of_error(asked, version, &message);
                    if let Some(place) = place.and_then(|at| message.get_mut(at..at + 2)) {
                        place.copy_from_slice(&error.to_be_bytes());
                        self.lost.fetch_add(1, Ordering::SeqCst);
                    }
                }
                Some(_) => {
                    self.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                None => {}
            }
            if to.write_all(&message).await.is_err() {
                return;
            }
        }
    }
}

/// Where an answer tells of an error: after the time that one should wait, or with its first partition.
fn place_of_error(asked: i16, version: i16, answer: &[u8]) -> Option<usize> {
    if asked != PRODUCE {
        return Some(12);
    }
    // Behind the number: tags, how many topics, the name of the first with its length, how many partitions, which one.
    let name = usize::from(answer.get(10)?.checked_sub(1)?);
    (version >= PRODUCE_VERSION).then_some(4 + 4 + 1 + 1 + 1 + name + 1 + 4)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
