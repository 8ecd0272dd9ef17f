//! What librdkafka tells and the safe interface does not: all of the unsafe code of the adapter.
#![expect(unsafe_code, reason = "what rdkafka has no safe function for; each call says why it is sound")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use millrace_core::record::{Headers, HeadersBuilder, Record};
use millrace_core::time::Timestamp;
use rdkafka::ClientContext;
use rdkafka::bindings::{
    RD_KAFKA_MSG_F_COPY, rd_kafka_AclOperation_t, rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new,
    rd_kafka_AdminOptions_set_include_authorized_operations, rd_kafka_AdminOptions_t, rd_kafka_DescribeTopics,
    rd_kafka_DescribeTopics_result_topics, rd_kafka_ListConsumerGroupOffsets,
    rd_kafka_ListConsumerGroupOffsets_destroy, rd_kafka_ListConsumerGroupOffsets_new,
    rd_kafka_ListConsumerGroupOffsets_result_groups, rd_kafka_TopicCollection_destroy,
    rd_kafka_TopicCollection_of_topic_names, rd_kafka_TopicDescription_authorized_operations,
    rd_kafka_TopicDescription_error, rd_kafka_TopicDescription_name, rd_kafka_TopicDescription_t,
    rd_kafka_TopicDescription_topic_id, rd_kafka_Uuid_least_significant_bits, rd_kafka_Uuid_most_significant_bits,
    rd_kafka_admin_op_t, rd_kafka_consume_batch_queue, rd_kafka_consumer_group_metadata,
    rd_kafka_consumer_group_metadata_destroy, rd_kafka_consumer_group_metadata_generation_id,
    rd_kafka_consumer_group_metadata_member_id, rd_kafka_error_code, rd_kafka_error_destroy,
    rd_kafka_event_DescribeTopics_result, rd_kafka_event_ListConsumerGroupOffsets_result, rd_kafka_event_destroy,
    rd_kafka_event_error, rd_kafka_event_t, rd_kafka_flush, rd_kafka_group_result_error,
    rd_kafka_group_result_partitions, rd_kafka_header_add, rd_kafka_header_get_all, rd_kafka_headers_destroy,
    rd_kafka_headers_new, rd_kafka_headers_t, rd_kafka_message_destroy, rd_kafka_message_headers, rd_kafka_message_t,
    rd_kafka_message_timestamp, rd_kafka_produceva, rd_kafka_queue_destroy, rd_kafka_queue_get_partition,
    rd_kafka_queue_new, rd_kafka_queue_poll, rd_kafka_queue_t, rd_kafka_topic_partition_list_t,
    rd_kafka_topic_partition_t, rd_kafka_vtype_t, rd_kafka_vu_s__bindgen_ty_1 as Content,
    rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 as Memory, rd_kafka_vu_t,
};
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

use super::clients::{MemberContext, Shared, signed};
use super::record::Placed;

/// Whether the consumer is a member of its group now. librdkafka resets generation and member id by itself when a session
/// is lost; a commit that carries neither would not be checked by the broker.
pub(super) fn is_member<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> bool {
    // SAFETY: the client lives as long as `consumer`; the metadata is a copy that nobody else has, its texts live until it
    // is destroyed, and none of it is used after that.
    unsafe {
        let metadata = rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return false;
        }
        let member = rd_kafka_consumer_group_metadata_member_id(metadata);
        let named = !member.is_null() && !CStr::from_ptr(member).is_empty();
        let generation = rd_kafka_consumer_group_metadata_generation_id(metadata);
        rd_kafka_consumer_group_metadata_destroy(metadata);
        named && generation >= 0
    }
}

/// Waits until all records of a producer have been answered, without lingering, or the time is up. A report that waits to be
/// read counts as unanswered.
pub(super) fn flush<C: ClientContext>(client: &Client<C>, within: Duration) {
    let millis = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client lives as long as `client`.
    unsafe { rd_kafka_flush(client.native_ptr(), millis) };
}

/// Offset and record of a message, in memory of our own.
pub(super) fn read(message: &BorrowedMessage<'_>) -> (u64, Record) {
    // SAFETY: the message lives while it is borrowed.
    unsafe { copy(message.ptr()) }
}

/// A message without an error, copied into one piece of memory. A header's name that is not UTF-8 is mended, where the safe
/// interface would panic.
///
/// # Safety
/// The message lives while this runs.
unsafe fn copy(message: *const rd_kafka_message_t) -> (u64, Record) {
    // SAFETY: as the caller promises. Key and value have as many bytes as the message says, unless there are none.
    let (offset, millis, key, value) = unsafe {
        let given = |start: *mut c_void, bytes| {
            (!start.is_null()).then(|| std::slice::from_raw_parts(start.cast_const().cast::<u8>(), bytes))
        };
        let (key, value) = (given((*message).key, (*message).key_len), given((*message).payload, (*message).len));
        ((*message).offset, rd_kafka_message_timestamp(message, ptr::null_mut()), key, value)
    };
    let bytes = |given: Option<&[u8]>| given.map_or(0, <[u8]>::len);
    let mut size = bytes(key) + bytes(value);
    // SAFETY: as the caller promises.
    unsafe {
        each_header(message, |name, value| size += HeadersBuilder::OVERHEAD_BYTES + name.count_bytes() + bytes(value));
    }
    let mut memory = BytesMut::with_capacity(size);
    let mut take = |given: &[u8]| {
        memory.put_slice(given);
        memory.split().freeze()
    };
    let (key, value) = (key.map(&mut take), value.map(&mut take));
    let mut headers = HeadersBuilder::within(memory);
    // SAFETY: as the caller promises.
    unsafe { each_header(message, |name, value| headers.push(&name.to_string_lossy(), value)) };
    // A message without a time has -1; more milliseconds than nanoseconds can hold are nonsense, and no reason to stop.
    let timestamp = Timestamp::from_nanos(u64::try_from(millis).unwrap_or(0).saturating_mul(1_000_000));
    (u64::try_from(offset).unwrap_or_default(), Record { timestamp, key, value, headers: headers.build() })
}

/// Shows the headers of a message in order.
///
/// # Safety
/// The message lives while this runs.
unsafe fn each_header(message: *const rd_kafka_message_t, mut each: impl FnMut(&CStr, Option<&[u8]>)) {
    let mut native = ptr::null_mut();
    // SAFETY: the message lives, and owns its headers.
    if unsafe { rd_kafka_message_headers(message, &raw mut native) } != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return;
    }
    for index in 0.. {
        let (mut name, mut value, mut bytes) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `native` is the message's, and the places to write to are ours.
        let found = unsafe { rd_kafka_header_get_all(native, index, &raw mut name, &raw mut value, &raw mut bytes) };
        if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return;
        }
        // SAFETY: librdkafka ends names with a zero; a value has `bytes` bytes unless there is none. Both live as long as
        // the message.
        let (name, value) = unsafe {
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), bytes));
            (CStr::from_ptr(name), value)
        };
        each(name, value);
    }
}

/// The records of a partition that have arrived, many at a time: the safe interface makes an event of each, and looks at the
/// clock for it.
pub(super) struct Records {
    queue: *mut rd_kafka_queue_t,
    /// It has the client that the queue is of.
    _consumer: Shared<MemberContext>,
}

// SAFETY: librdkafka's queues can be used by any thread.
unsafe impl Send for Records {}

impl Records {
    /// Those of a partition that has a queue of its own.
    pub(super) fn of(consumer: &Shared<MemberContext>, topic: &str, partition: u32) -> Self {
        let topic = CString::new(topic).expect("the name of a topic has no zero");
        // SAFETY: the client lives as long as `consumer`, and the name is copied. The queue is a share of our own, for a
        // partition that librdkafka knows or learns to know, so that there is one.
        let queue =
            unsafe { rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), signed(partition)) };
        assert!(!queue.is_null(), "a consumer has a queue for each partition");
        Self { queue, _consumer: Arc::clone(consumer) }
    }

    /// Shows at most so many that have arrived, and answers how many there were.
    ///
    /// # Errors
    /// What librdkafka found in the place of the next record; what follows it is dropped.
    pub(super) fn take(&self, most: usize, mut each: impl FnMut(u64, Record)) -> Result<usize, RDKafkaErrorCode> {
        let mut messages = Vec::<*mut rd_kafka_message_t>::with_capacity(most);
        // SAFETY: the queue lives as long as this, and there is room for `most` messages, of which the answer says how many
        // there are; each is ours to destroy. An answer below zero, an error, is none.
        unsafe {
            let taken = rd_kafka_consume_batch_queue(self.queue, 0, messages.as_mut_ptr(), most);
            messages.set_len(usize::try_from(taken).unwrap_or(0));
        }
        let mut failed = None;
        for message in &messages {
            // SAFETY: it is ours, is not used after it was destroyed, and is destroyed once.
            unsafe {
                let code = (**message).err;
                if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                    failed = failed.or(Some(code.into()));
                } else if failed.is_none() {
                    let (offset, record) = copy(*message);
                    each(offset, record);
                }
                rd_kafka_message_destroy(*message);
            }
        }
        failed.map_or(Ok(messages.len()), Err)
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: it is our share, and the client lives still.
        unsafe { rd_kafka_queue_destroy(self.queue) };
    }
}

/// Hands a record to a producer, which copies it, with a number for the report of its delivery. The safe interface makes a text
/// of its own of each header's name.
pub(super) fn send<C: ClientContext>(
    client: &Client<C>,
    placed: &Placed,
    number: usize,
) -> Result<(), RDKafkaErrorCode> {
    use rd_kafka_vtype_t as Kind;
    let Placed { topic, partition, record } = placed;
    let topic = CString::new(topic.as_str()).expect("the name of a topic has no zero");
    let mem = |given: &Option<Bytes>| {
        let (ptr, size) = given.as_ref().map_or((ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()));
        Content { mem: Memory { ptr: ptr.cast_mut().cast(), size } }
    };
    let value = |vtype, u| rd_kafka_vu_t { vtype, u };
    let timestamp = i64::try_from(record.timestamp.as_millis()).unwrap_or(0);
    // SAFETY: the client lives as long as `client`. librdkafka copies topic, key and value; it owns the headers if it takes the
    // record, and else they are destroyed here, as is its error.
    unsafe {
        let headers = headers(&record.headers);
        let given = [
            value(Kind::RD_KAFKA_VTYPE_TOPIC, Content { cstr: topic.as_ptr() }),
            value(Kind::RD_KAFKA_VTYPE_PARTITION, Content { i32_: signed(*partition) }),
            value(Kind::RD_KAFKA_VTYPE_MSGFLAGS, Content { i: RD_KAFKA_MSG_F_COPY }),
            value(Kind::RD_KAFKA_VTYPE_VALUE, mem(&record.value)),
            value(Kind::RD_KAFKA_VTYPE_KEY, mem(&record.key)),
            value(Kind::RD_KAFKA_VTYPE_TIMESTAMP, Content { i64_: timestamp }),
            value(Kind::RD_KAFKA_VTYPE_OPAQUE, Content { ptr: ptr::without_provenance_mut(number) }),
            value(Kind::RD_KAFKA_VTYPE_HEADERS, Content { headers }),
        ];
        let error = rd_kafka_produceva(client.native_ptr(), given.as_ptr(), given.len());
        if error.is_null() {
            return Ok(());
        }
        let code = rd_kafka_error_code(error);
        rd_kafka_error_destroy(error);
        rd_kafka_headers_destroy(headers);
        Err(code.into())
    }
}

/// Headers as librdkafka has them.
///
/// # Safety
/// Somebody must destroy them.
unsafe fn headers(headers: &Headers) -> *mut rd_kafka_headers_t {
    let length = |bytes: &[u8]| isize::try_from(bytes.len()).expect("a record is far smaller");
    // SAFETY: names and values are copied, with the lengths that they have.
    unsafe {
        let native = rd_kafka_headers_new(headers.entries().count());
        for (name, value) in headers.entries() {
            let (value, bytes) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), length(value)));
            let added = rd_kafka_header_add(native, name.as_ptr().cast(), length(name), value.cast(), bytes);
            debug_assert_eq!(added, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, "headers that are new can be changed");
        }
        native
    }
}

/// What the principal may do with a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) read: bool,
    pub(super) write: bool,
}

/// What the principal may do with some topics that exist; an error where it may not even look. None for a topic of which the
/// broker does not say.
pub(super) fn allowed<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    within: Duration,
) -> Result<BTreeMap<String, Result<Option<Allowed>, RDKafkaErrorCode>>, RDKafkaErrorCode> {
    // SAFETY: the description lives while it is looked at.
    described(client, topics, within, |description| unsafe { operations(description) })
}

/// What a cluster calls a topic by, and no later one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicId([u8; 16]);

impl TopicId {
    pub(super) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a topic that exists is called by.
pub(super) fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    within: Duration,
) -> Result<TopicId, RDKafkaErrorCode> {
    // SAFETY: the description lives while it is looked at, and the id as long as the description.
    let ids = described(client, &[topic], within, |description| unsafe {
        let code = rd_kafka_error_code(rd_kafka_TopicDescription_error(description));
        let id = rd_kafka_TopicDescription_topic_id(description);
        if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || id.is_null() {
            return Err(code.into());
        }
        let (most, least) = (rd_kafka_Uuid_most_significant_bits(id), rd_kafka_Uuid_least_significant_bits(id));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&most.to_be_bytes());
        bytes[8..].copy_from_slice(&least.to_be_bytes());
        Ok(TopicId(bytes))
    })?;
    ids.into_values().next().unwrap_or(Err(RDKafkaErrorCode::UnknownTopicOrPartition))
}

/// Asks the broker for descriptions of topics, and shows each.
fn described<C: ClientContext, T>(
    client: &Client<C>,
    topics: &[&str],
    within: Duration,
    look: impl Fn(*const rd_kafka_TopicDescription_t) -> T,
) -> Result<BTreeMap<String, T>, RDKafkaErrorCode> {
    let names: Vec<CString> = topics.iter().filter_map(|name| CString::new(*name).ok()).collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: names live until the collection has copied them, and the collection until the answer is there. Texts and arrays of
    // the event are as long as librdkafka says.
    unsafe {
        let collection = rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let ask = |options, queue| {
            let refused = rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
            if !refused.is_null() {
                rd_kafka_error_destroy(refused);
            }
            rd_kafka_DescribeTopics(client.native_ptr(), collection, options, queue);
        };
        let about = (topics.first().copied().unwrap_or_default(), within);
        let found = answer(client, rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, about, ask, |event| {
            let mut count = 0;
            let descriptions =
                rd_kafka_DescribeTopics_result_topics(rd_kafka_event_DescribeTopics_result(event), &raw mut count);
            let named = (0..count).map(|index| {
                let description = *descriptions.add(index);
                let name = CStr::from_ptr(rd_kafka_TopicDescription_name(description)).to_string_lossy().into_owned();
                (name, look(description))
            });
            named.collect()
        });
        rd_kafka_TopicCollection_destroy(collection);
        found
    }
}

/// Where a group goes on in a partition.
#[derive(Clone, Debug)]
pub(super) struct GroupPosition {
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) offset: u64,
    pub(super) metadata: String,
}

/// Offsets and metadata by topic and partition.
pub(super) fn by_partition(positions: &[GroupPosition]) -> BTreeMap<(&str, u32), (u64, &str)> {
    let each = positions.iter();
    each.map(|one| ((one.topic.as_str(), one.partition), (one.offset, one.metadata.as_str()))).collect()
}

/// All that a group has committed, whoever asks. Transactions that are open are not waited for.
///
/// A broker is looked for by a topic, any topic. The client is a consumer's with a group, any group: librdkafka 2.12 looks for the
/// group's coordinator in it when it asked somebody who is none any more, whether there is one or not.
pub(super) fn group_positions<C: ConsumerContext>(
    client: &Client<C>,
    group: &str,
    (topic, within): (&str, Duration),
) -> Result<Vec<GroupPosition>, RDKafkaErrorCode> {
    let group = CString::new(group).expect("the name of a group has no zero");
    // SAFETY: the request lives until the answer is there, which is of one group; the list of partitions and its texts live as
    // long as the event, and are as long as librdkafka says.
    unsafe {
        let mut request = rd_kafka_ListConsumerGroupOffsets_new(group.as_ptr(), ptr::null());
        let ask = |options: *mut rd_kafka_AdminOptions_t, queue| {
            rd_kafka_ListConsumerGroupOffsets(client.native_ptr(), &raw mut request, 1, options, queue);
        };
        let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS;
        let found = answer(client, operation, (topic, within), ask, |event| {
            let result = rd_kafka_event_ListConsumerGroupOffsets_result(event);
            let mut count = 0;
            let groups = rd_kafka_ListConsumerGroupOffsets_result_groups(result, &raw mut count);
            if count == 0 {
                return Ok(Vec::new());
            }
            let error = rd_kafka_group_result_error(*groups);
            if !error.is_null() {
                return Err(rd_kafka_error_code(error).into());
            }
            Ok(positions(rd_kafka_group_result_partitions(*groups)))
        });
        rd_kafka_ListConsumerGroupOffsets_destroy(request);
        found?
    }
}

/// The partitions of a list that have an offset.
///
/// # Safety
/// The list is null or lives while this runs.
unsafe fn positions(list: *const rd_kafka_topic_partition_list_t) -> Vec<GroupPosition> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: as the caller promises. A list has as many elements as it says; the metadata of one has as many bytes as it says, or
    // is null.
    unsafe {
        let elements = (0..usize::try_from((*list).cnt).unwrap_or(0)).map(|index| &*(*list).elems.add(index));
        let position = |element: &rd_kafka_topic_partition_t| {
            let metadata = element.metadata.cast_const().cast::<u8>();
            let metadata =
                if metadata.is_null() { &[] } else { std::slice::from_raw_parts(metadata, element.metadata_size) };
            Some(GroupPosition {
                topic: CStr::from_ptr(element.topic).to_string_lossy().into_owned(),
                partition: u32::try_from(element.partition).ok()?,
                // What has none is below zero.
                offset: u64::try_from(element.offset).ok()?,
                metadata: String::from_utf8_lossy(metadata).into_owned(),
            })
        };
        elements.filter_map(position).collect()
    }
}

/// Asks a broker for something, and looks at what it answers.
///
/// # Safety
/// What `ask` hands to librdkafka, for this queue and with these options, lives until this returns. `look` keeps nothing of the
/// event, which is an answer to that.
unsafe fn answer<C: ClientContext, T>(
    client: &Client<C>,
    operation: rd_kafka_admin_op_t,
    (topic, within): (&str, Duration),
    ask: impl FnOnce(*mut rd_kafka_AdminOptions_t, *mut rd_kafka_queue_t),
    look: impl FnOnce(*mut rd_kafka_event_t) -> T,
) -> Result<T, RDKafkaErrorCode> {
    let began = Instant::now();
    reach(client, topic, within)?;
    let left = within.saturating_sub(began.elapsed());
    let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client lives as long as `client`. What is made here is destroyed here, and not used after that.
    unsafe {
        let options = rd_kafka_AdminOptions_new(client.native_ptr(), operation);
        let queue = rd_kafka_queue_new(client.native_ptr());
        ask(options, queue);
        let event = rd_kafka_queue_poll(queue, millis);
        let error =
            if event.is_null() { RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT } else { rd_kafka_event_error(event) };
        let found =
            if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(look(event)) } else { Err(error.into()) };
        if !event.is_null() {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
        rd_kafka_AdminOptions_destroy(options);
        found
    }
}

/// Waits for a broker that answers, by asking for one topic: without a name it would be for all that there are. While a request of
/// the administrative kind waits for a broker, librdkafka 2.12 tries to connect again and again without a pause
/// (`rd_kafka_broker_get_async`: each failure is a change of state, which is followed by the next attempt), and takes a whole
/// processor where the broker may need it to start. Asking for metadata waits as it should.
fn reach<C: ClientContext>(client: &Client<C>, topic: &str, within: Duration) -> Result<(), RDKafkaErrorCode> {
    let found = client.fetch_metadata(Some(topic), within);
    found.map(drop).map_err(|error| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))
}

/// What a description says of the principal.
///
/// # Safety
/// The description lives while this runs.
unsafe fn operations(description: *const rd_kafka_TopicDescription_t) -> Result<Option<Allowed>, RDKafkaErrorCode> {
    // SAFETY: as the caller promises; the array has `count` elements, which are numbers, read as such because a later broker can
    // know more of them.
    unsafe {
        let code = rd_kafka_error_code(rd_kafka_TopicDescription_error(description));
        if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(code.into());
        }
        let mut count = 0;
        let operations = rd_kafka_TopicDescription_authorized_operations(description, &raw mut count).cast::<u32>();
        if operations.is_null() {
            return Ok(None);
        }
        let operations = std::slice::from_raw_parts(operations, count);
        let may = |operation: rd_kafka_AclOperation_t| operations.contains(&(operation as u32));
        let all = may(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_ALL);
        Ok(Some(Allowed {
            read: all || may(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
            write: all || may(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
        }))
    }
}
