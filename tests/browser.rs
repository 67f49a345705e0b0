//! The EventSource of a real browser, over the restart of the node.

use harness::browser::{self, Page};
use harness::node::Node;
use serde_json::json;

#[test]
fn an_event_source_misses_nothing_and_gets_nothing_twice_over_a_crash() {
    let Some(program) = browser::find() else {
        return harness::skip("no Chromium", "install the package chromium");
    };
    let mut node = Node::start(env!("CARGO_BIN_EXE_corecast"), &[]);
    let page = Page::open(program, node.public);
    page.wait_for_connected();
    node.say("one \n\r\n two: data: three \u{2028} é");
    page.expect_message("one \n\r\n two: data: three \u{2028} é");

    let to_page = |node: &Node, content: &str| {
        node.create(&json!({
            "content": content, "targetType": "SELECTED", "targetIds": ["browser"]
        }));
    };
    for round in 0..3 {
        to_page(&node, &format!("{round} before"));
        page.expect_message(&format!("{round} before"));
        node.crash();
        // The browser waits for as long as `retry:` said: this is here before it is back.
        to_page(&node, &format!("{round} meanwhile"));
        page.wait_for_connected();
        page.expect_message(&format!("{round} meanwhile"));
        to_page(&node, &format!("{round} after"));
        page.expect_message(&format!("{round} after"));
    }
}
