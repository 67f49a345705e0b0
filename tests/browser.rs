//! The EventSource of a real browser, over the restart of the node.

use harness::browser::{self, Browser, Origin};
use harness::node::Node;
use serde_json::{Value, json};

/// Opens an EventSource and tells what comes, each with what it was.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>Corecast</title><script>
let telling = Promise.resolve();
function tell(what, event) {
  const body = JSON.stringify({ what, id: event.lastEventId || "", data: event.data || "" });
  // One after the other, so that the order of what is told is that of what came.
  telling = telling.then(() => fetch("/told", { method: "POST", body }));
}
const source = new EventSource("/api/user/sse/connect?userId=browser&connectionId=tab");
for (const name of ["CONNECTED", "MESSAGE", "GAP", "SERVER_SHUTDOWN", "message"])
  source.addEventListener(name, event => tell(name, event));
</script>"#;

struct Page {
    origin: Origin,
    _browser: Browser,
}

impl Page {
    /// The next thing that came: its name and its data.
    fn next(&self) -> (String, Value) {
        let told: Value = serde_json::from_str(&self.origin.told()).expect("the page tells JSON");
        let data = told["data"].as_str().expect("a string");
        assert_ne!(told["id"], "", "the browser keeps a cursor: {told}");
        let what = told["what"].as_str().expect("a string").to_owned();
        (what, serde_json::from_str(data).expect("data is JSON"))
    }

    fn wait_for_connected(&self) {
        let (what, data) = self.next();
        assert_eq!((what.as_str(), &data["connectionId"]), ("CONNECTED", &json!("tab")));
    }

    fn expect_message(&self, content: &str) {
        let (what, data) = self.next();
        assert_eq!((what.as_str(), &data["content"]), ("MESSAGE", &json!(content)));
    }
}

#[test]
fn an_event_source_misses_nothing_and_gets_nothing_twice_over_a_crash() {
    let Some(program) = browser::find() else {
        return harness::skip("no Chromium", "install the package chromium");
    };
    let mut node = Node::start(env!("CARGO_BIN_EXE_corecast"), &[]);
    let origin = Origin::start(PAGE, node.public);
    let browser = Browser::open(program, &origin.url());
    let page = Page { origin, _browser: browser };
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
