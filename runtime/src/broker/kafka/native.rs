//! What librdkafka tells and the safe interface does not: all of the unsafe code of the adapter.
#![expect(
    unsafe_code,
    reason = "three questions that rdkafka has no safe function for; each call says why it is sound"
)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::time::Duration;

use millrace_core::record::{Headers, HeadersBuilder};
use rdkafka::ClientContext;
use rdkafka::bindings::{
    rd_kafka_AclOperation_t, rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new,
    rd_kafka_AdminOptions_set_include_authorized_operations, rd_kafka_DescribeTopics,
    rd_kafka_DescribeTopics_result_topics, rd_kafka_TopicCollection_destroy, rd_kafka_TopicCollection_of_topic_names,
    rd_kafka_TopicDescription_authorized_operations, rd_kafka_TopicDescription_error, rd_kafka_TopicDescription_name,
    rd_kafka_TopicDescription_t, rd_kafka_admin_op_t, rd_kafka_consumer_group_metadata,
    rd_kafka_consumer_group_metadata_destroy, rd_kafka_consumer_group_metadata_generation_id,
    rd_kafka_consumer_group_metadata_member_id, rd_kafka_error_code, rd_kafka_error_destroy,
    rd_kafka_event_DescribeTopics_result, rd_kafka_event_destroy, rd_kafka_event_error, rd_kafka_header_get_all,
    rd_kafka_message_headers, rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll,
};
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

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

/// The headers of a message. A name that is not UTF-8 is mended, where the safe interface would panic.
pub(super) fn headers(message: &BorrowedMessage<'_>) -> Headers {
    let mut headers = HeadersBuilder::default();
    let mut native = ptr::null_mut();
    // SAFETY: the message lives while it is borrowed, and owns its headers.
    if unsafe { rd_kafka_message_headers(message.ptr(), &raw mut native) } != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
    {
        return headers.build();
    }
    for index in 0.. {
        let (mut name, mut value, mut bytes) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `native` is the message's, and the places to write to are ours.
        let found = unsafe { rd_kafka_header_get_all(native, index, &raw mut name, &raw mut value, &raw mut bytes) };
        if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            break;
        }
        // SAFETY: librdkafka ends names with a zero; a value has `bytes` bytes unless there is none. Both live as long as
        // the message.
        let (name, value) = unsafe {
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), bytes));
            (CStr::from_ptr(name).to_string_lossy(), value)
        };
        headers.push(&name, value);
    }
    headers.build()
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
    let names: Vec<CString> = topics.iter().filter_map(|name| CString::new(*name).ok()).collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let millis = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    let mut found = BTreeMap::new();
    // SAFETY: the client lives as long as `client`. Names live until the collection has copied them. Everything that is made
    // here is destroyed here, and nothing of an event is used after it; its texts and arrays are as long as librdkafka says.
    unsafe {
        let collection = rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let options =
            rd_kafka_AdminOptions_new(client.native_ptr(), rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let refused = rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        if !refused.is_null() {
            rd_kafka_error_destroy(refused);
        }
        let queue = rd_kafka_queue_new(client.native_ptr());
        rd_kafka_DescribeTopics(client.native_ptr(), collection, options, queue);
        let event = rd_kafka_queue_poll(queue, millis);
        let error =
            if event.is_null() { RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT } else { rd_kafka_event_error(event) };
        let result = if event.is_null() { ptr::null() } else { rd_kafka_event_DescribeTopics_result(event) };
        if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && !result.is_null() {
            let mut count = 0;
            let descriptions = rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            for index in 0..count {
                let description = *descriptions.add(index);
                let name = CStr::from_ptr(rd_kafka_TopicDescription_name(description)).to_string_lossy().into_owned();
                found.insert(name, operations(description));
            }
        }
        if !event.is_null() {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
        rd_kafka_AdminOptions_destroy(options);
        rd_kafka_TopicCollection_destroy(collection);
        if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(found) } else { Err(error.into()) }
    }
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
