//! How long uploaded components are kept.

use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use millrace_core::digest::Digest;
use millrace_tests::process::Api;

use super::interrupted::custom_section;
use super::revisions::{done, embedded, millrace, run_everywhere, two_versions};

/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(60);
/// Revisions of a function that one can go back to, as the guide says.
const KEPT: u64 = 20;

async fn status(url: &str, component: Digest) -> u16 {
    let answer = Api::default().send(Method::GET, &format!("{url}/v1/components/{component}"), "", "").await;
    answer.expect("the server answers").0.as_u16()
}

/// Of a function that is deployed again and again, the components of the newest revisions are kept, and nobody goes back to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_that_nobody_can_go_back_to_are_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, _] = two_versions(directory.path());
    let url = &server.url;
    let file = Path::new(&one).join("guest.wasm");
    let guest = std::fs::read(&file).expect("a file");
    let mut components = Vec::new();
    for number in 0..KEPT + 2 {
        let component = [guest.clone(), custom_section("number", &number.to_be_bytes())].concat();
        components.push(Digest::of(&component));
        std::fs::write(&file, component).expect("a file");
        done(url, &["deploy", &one, "--yes"]);
    }
    let began = Instant::now();
    while [status(url, components[0]).await, status(url, components[1]).await] != [404; 2] {
        assert!(began.elapsed() < PATIENCE, "what nobody can go back to stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for component in &components[2..] {
        assert_eq!(status(url, *component).await, 200);
    }
    let ran = millrace(url, &["functions", "rollback", "pay", "--to", "3", "--yes"]);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.code() == Some(1) && said.contains("revision 3 is not kept any more"), "{said}");
    // Each was staged and activated: the third one has the number 5.
    done(url, &["functions", "rollback", "pay", "--to", "5", "--yes"]);
    run_everywhere(url, 5, 1).await;
    assert!(server.stop());
}
