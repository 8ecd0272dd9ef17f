//! What is generated from `wit/`. Nothing of it leaves the sandbox.
#![allow(missing_docs, unreachable_pub, reason = "generated")]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "function",
    ownership: Borrowing { duplicate_if_necessary: false },
    imports: { default: trappable },
    exports: { default: async },
    with: {
        "millrace:function/types.delivery": self::Delivery,
        "wasi:keyvalue/store.bucket": self::Bucket,
    },
});

/// Names a `delivery` in a guest's handle table. There is never more than one, that of the call under way, and what it
/// answers is in the instance's state.
pub struct Delivery;

/// Names the `bucket` in a guest's handle table. All of them are the same.
pub struct Bucket;
