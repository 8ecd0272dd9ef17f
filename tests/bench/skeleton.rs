//! The limit of the whole: a log, wasmtime and commits, and nothing else.
//!
//! Batches of events are read from a database, go through bare wasmtime one by one, and what comes out is written, with a key
//! for each event and one offset, as one atomic synced write of all that waits. There is no HTTP, no order, no filter, no
//! identity, no retry, no account.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use hdrhistogram::Histogram;
use millrace_core::event::Event;

use super::bare::{Bare, Emitted, Instance};
use super::events;

/// Events in a batch of the source.
const BATCH: u64 = 100;
/// Batches in the source; it is read over and over.
const BATCHES: u64 = 200;
/// Cores that handle events.
const WORKERS: u64 = 2;
/// Batches that wait to be written, at most.
const WAITING: usize = 8;

/// A database that has what a log has.
struct Disk {
    database: Database,
    source: Keyspace,
    outputs: Keyspace,
    keys: Keyspace,
    offsets: Keyspace,
}

/// What a worker has done with a batch.
struct Done {
    worker: u64,
    offset: u64,
    outputs: Vec<u8>,
    keys: Vec<u8>,
}

/// Events a second through two workers, each with an instance that is kept or, if it is `fresh`, one for each event.
pub(crate) fn throughput(dir: &Path, component: &[u8], fresh: bool, events: u64) -> f64 {
    let disk = Disk::open(dir);
    disk.fill();
    let bare = Bare::new(component);
    let began = Instant::now();
    thread::scope(|scope| {
        let (done, todo) = sync_channel(WAITING);
        for worker in 0..WORKERS {
            let (disk, bare, done) = (&disk, &bare, done.clone());
            scope.spawn(move || work(disk, bare, worker, fresh, events / WORKERS / BATCH, &done));
        }
        drop(done);
        commit(&disk, &todo);
    });
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let events = events as f64;
    events / began.elapsed().as_secs_f64()
}

/// The 99th percentile, in milliseconds, of the way from a request to a synced output at a rate: `batch` events come at once, are
/// written and synced, handled, and their outputs are written and synced.
pub(crate) fn latency(dir: &Path, component: &[u8], rate: u32, batch: u64, events: u64) -> f64 {
    let disk = Disk::open(dir);
    let bare = Bare::new(component);
    let mut instance = bare.instance();
    let mut seen = Histogram::<u64>::new(3).expect("three digits");
    let began = Instant::now();
    for number in 0..events / batch {
        let due = began + Duration::from_secs(1) / rate * u32::try_from(number * batch).expect("few events");
        #[expect(clippy::disallowed_methods, reason = "time itself is waited for: events come at a rate")]
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let value = written(number * batch..(number + 1) * batch);
        disk.write(|to| to.insert(&disk.source, number.to_be_bytes(), value));
        let value = disk.source.get(number.to_be_bytes()).expect("it can be read").expect("it is there");
        let mut done = Done { worker: 0, offset: number, outputs: Vec::new(), keys: Vec::new() };
        handle(&bare, &mut instance, false, value.into(), &mut done);
        disk.settle([done]);
        let nanos = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
        seen.record(nanos).expect("it grows with what is recorded");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let nanos = seen.value_at_quantile(0.99) as f64;
    nanos / 1e6
}

fn work(disk: &Disk, bare: &Bare, worker: u64, fresh: bool, batches: u64, done: &SyncSender<Done>) {
    let mut instance = bare.instance();
    for offset in 0..batches {
        let value = disk.source.get((offset % BATCHES).to_be_bytes()).expect("it can be read").expect("it is there");
        let mut batch = Done { worker, offset, outputs: Vec::new(), keys: Vec::new() };
        handle(bare, &mut instance, fresh, value.into(), &mut batch);
        done.send(batch).expect("someone commits");
    }
}

fn handle(bare: &Bare, instance: &mut Instance, fresh: bool, mut batch: Bytes, done: &mut Done) {
    while !batch.is_empty() {
        let event = read(&mut batch);
        if fresh {
            *instance = bare.instance();
        }
        instance.handle(&event);
        for Emitted { ty, data } in instance.take() {
            let fields = [&*event.id, &*event.source, &*ty].map(str::as_bytes);
            fields.into_iter().chain([&*data]).for_each(|field| put(field, &mut done.outputs));
            event.extensions.iter().for_each(|(_, value)| put(value.as_bytes(), &mut done.outputs));
        }
        done.keys.extend(xxhash_rust::xxh3::xxh3_128(event.id.as_bytes()).to_be_bytes());
    }
}

/// Writes all that waits at once, until all are done.
fn commit(disk: &Disk, todo: &Receiver<Done>) {
    while let Ok(first) = todo.recv() {
        disk.settle(std::iter::once(first).chain(todo.try_iter()));
    }
}

impl Disk {
    fn open(dir: &Path) -> Self {
        // The same sizes as in the log, so that it is no race between settings.
        let database = Database::builder(dir)
            .cache_size(16 << 20)
            .max_journaling_size(128 << 20)
            .worker_threads(3)
            .open()
            .expect("a database");
        let large = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(64 << 20)
                .with_kv_separation(Some(KvSeparationOptions::default()))
        };
        let source = database.keyspace("source", large).expect("a keyspace");
        let outputs = database.keyspace("outputs", large).expect("a keyspace");
        let keys = database.keyspace("keys", large).expect("a keyspace");
        let offsets = database.keyspace("offsets", KeyspaceCreateOptions::default).expect("a keyspace");
        Self { database, source, outputs, keys, offsets }
    }

    fn fill(&self) {
        for batch in 0..BATCHES {
            let value = written(batch * BATCH..(batch + 1) * BATCH);
            self.source.insert(batch.to_be_bytes(), value).expect("it can be written");
        }
        self.database.persist(PersistMode::SyncAll).expect("it can be synced");
    }

    fn settle(&self, all: impl IntoIterator<Item = Done>) {
        self.write(|to| {
            for Done { worker, offset, outputs, keys } in all {
                let key = [worker.to_be_bytes(), offset.to_be_bytes()].concat();
                to.insert(&self.outputs, key.clone(), outputs);
                to.insert(&self.keys, key, keys);
                to.insert(&self.offsets, worker.to_be_bytes(), offset.to_be_bytes());
            }
        });
    }

    fn write(&self, fill: impl FnOnce(&mut fjall::OwnedWriteBatch)) {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        fill(&mut batch);
        batch.commit().expect("it can be written");
    }
}

/// Events one after the other, each field with its length before it.
fn written(numbers: std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in numbers {
        let event = events::event(number);
        let (subject, content_type) = (event.subject.expect("set"), event.datacontenttype.expect("set"));
        for text in [event.id, event.source, event.ty, subject, content_type] {
            put(text.as_bytes(), &mut bytes);
        }
        for text in event.extensions.iter().flat_map(|(name, value)| [name, value]) {
            put(text.as_bytes(), &mut bytes);
        }
        put(&event.data.expect("set"), &mut bytes);
    }
    bytes
}

fn read(batch: &mut Bytes) -> Event {
    let mut text = || ByteString::try_from(take(batch)).expect("it was text");
    Event {
        id: text(),
        source: text(),
        ty: text(),
        subject: Some(text()),
        time: None,
        datacontenttype: Some(text()),
        dataschema: None,
        extensions: vec![(text(), text()), (text(), text()), (text(), text())],
        data: Some(take(batch)),
    }
}

fn put(field: &[u8], to: &mut Vec<u8>) {
    to.extend(u32::try_from(field.len()).expect("a short field").to_be_bytes());
    to.extend(field);
}

fn take(from: &mut Bytes) -> Bytes {
    use bytes::Buf as _;
    let length = from.get_u32() as usize;
    from.split_to(length)
}
