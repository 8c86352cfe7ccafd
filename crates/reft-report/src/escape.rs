/// Text as HTML.
pub fn escape(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;");
    escaped.replace('>', "&gt;").replace('"', "&quot;")
}

/// A line of Markdown with code as HTML.
pub(crate) fn inline(line: &str) -> String {
    let pieces = line.split('`').enumerate();
    let piece = |(i, text): (usize, &str)| match i % 2 {
        1 => format!("<code>{}</code>", escape(text)),
        _ => escape(text),
    };
    pieces.map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            inline("a <b> `x < \"y\"` & c"),
            "a &lt;b&gt; <code>x &lt; &quot;y&quot;</code> &amp; c"
        );
    }
}
