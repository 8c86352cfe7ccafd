/// The page's style: light and dark, and narrow screens.
pub(crate) const STYLE: &str = r#"
:root{--bg:#fff;--fg:#1b1f24;--soft:#5b6470;--line:#d9dee4;--card:#f6f8fa;--on-mid:#1b1f24;
--c0:#0b62c4;--c1:#d1571b;--c2:#1a7f5a;--c3:#9a3fb5;--c4:#b8860b;--c5:#c2255c;--c6:#0a8fa3;--c7:#6b5b4b;--c8:#5c6ac4;--c9:#5f8f1f}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e6e9ed;--soft:#9aa4b1;--line:#323942;--card:#1b2026;--on-mid:#14171b;
--c0:#5aa9ff;--c1:#ff9057;--c2:#4cc99a;--c3:#d38bea;--c4:#e6b94a;--c5:#ff7aa5;--c6:#4fd0e0;--c7:#b8a48f;--c8:#9aa5ff;--c9:#a3d35c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;margin:.2em 0 .4em}h2{font-size:1.15rem;margin:2em 0 .6em}
p,li{max-width:80ch}.soft{color:var(--soft)}
.warn{border-left:4px solid var(--c1);background:var(--card);padding:.5em .9em;margin:.5em 0}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.45em .6em;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--bg)}
tbody tr:last-child td{border-bottom:0}
thead th{background:var(--card);position:sticky;top:0}thead th:first-child{background:var(--card)}
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid var(--c0)}
th[aria-sort=ascending] button::after{content:" ▲"}th[aria-sort=descending] button::after{content:" ▼"}
.best{font-weight:700}.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:20px}
figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:12px}
figcaption{font-size:.875rem;margin-bottom:.5em}figcaption b{display:block}
svg{display:block;width:100%;height:auto}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--fg)}
svg .tick,svg .note{fill:var(--soft)}svg .grid{stroke:var(--line);stroke-width:1}
.c0{fill:var(--c0);stroke:var(--c0)}.c1{fill:var(--c1);stroke:var(--c1)}.c2{fill:var(--c2);stroke:var(--c2)}.c3{fill:var(--c3);stroke:var(--c3)}.c4{fill:var(--c4);stroke:var(--c4)}.c5{fill:var(--c5);stroke:var(--c5)}.c6{fill:var(--c6);stroke:var(--c6)}.c7{fill:var(--c7);stroke:var(--c7)}.c8{fill:var(--c8);stroke:var(--c8)}.c9{fill:var(--c9);stroke:var(--c9)}
svg .name,svg .note{paint-order:stroke;stroke:var(--bg);stroke-width:3px;stroke-linejoin:round}
svg .base{stroke:var(--soft);stroke-dasharray:5 4}
svg .sd{fill:none;stroke-width:1.5}svg .curve{fill:none;stroke-width:1.8;stroke-linejoin:round}
svg.map text{font-size:14px}svg .heat{fill:var(--c0)}svg .empty{fill:none;stroke:var(--line)}svg .value{text-anchor:middle}
svg .on-low{fill:var(--fg)}svg .on-mid{fill:var(--on-mid)}svg .on-high{fill:var(--bg)}
.legend{display:flex;flex-wrap:wrap;gap:.2em 1em;font-size:.8125rem;margin-top:.4em}
.wide{overflow-x:auto}
figure+figure{margin-top:14px}.plots figure+figure{margin-top:0}
.slider{position:sticky;top:0;z-index:1;background:var(--bg);padding:.6em 0}.slider[hidden]{display:none}
.slider input{width:min(16em,50vw);vertical-align:middle;accent-color:var(--c0);margin:0 .6em}.slider output{font-weight:700}
details{margin:1em 0}summary{cursor:pointer}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
@media(max-width:560px){main{padding:16px 12px 48px}h1{font-size:1.35rem}figure{padding:8px}}
@media print{.scroll{overflow:visible}}
"#;
