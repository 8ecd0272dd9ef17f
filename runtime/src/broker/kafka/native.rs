//! What librdkafka tells and the safe interface does not: all of the unsafe code of the adapter.
#![expect(unsafe_code, reason = "two questions that rdkafka has no safe function for; each call says why it is sound")]

use std::ffi::CStr;
use std::ptr;

use millrace_core::record::{Headers, HeadersBuilder};
use rdkafka::bindings::{
    rd_kafka_consumer_group_metadata, rd_kafka_consumer_group_metadata_destroy,
    rd_kafka_consumer_group_metadata_generation_id, rd_kafka_consumer_group_metadata_member_id,
    rd_kafka_header_get_all, rd_kafka_message_headers,
};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
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
