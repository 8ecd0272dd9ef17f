//! The contract travels with the crate, as a copy, because a link would not survive packaging.

use std::fs;
use std::path::Path;

#[test]
fn the_crate_carries_the_contract_of_the_repository() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR"));
    let repository = sdk.join("../wit");
    if !repository.exists() {
        return;
    }
    for file in ["function.wit", "deps/config/store.wit", "deps/keyvalue/store.wit", "deps/logging/logging.wit"] {
        let [ours, theirs] = [sdk.join("wit"), repository.clone()].map(|root| fs::read_to_string(root.join(file)).ok());
        assert!(ours.is_some() && ours == theirs, "copy wit/{file} to sdk/wit/{file}");
    }
}
