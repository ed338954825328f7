"""The page's style sheet, light and dark. Plotly's text and grid take their colours here, without a script."""

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f7f9; --text: #1b2430; --soft: #566172; --line: #d5dae1;
  --grid: #e4e8ed; --good: #0f7a4d; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #11151b; --card: #1a2029; --text: #e6eaf0; --soft: #a3afbf; --line: #323b48; --grid: #2a323e;
    --good: #4cc38a; --bad: #ff8a80; }
}
* { box-sizing: border-box; }
html { overflow-y: scroll; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 38px 0 10px; padding-bottom: 5px; border-bottom: 1px solid var(--line); }
h3 { font-size: 14px; font-weight: 600; margin: 14px 0 6px; overflow-wrap: anywhere; }
p { margin: 4px 0; }
.cards, .panels { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); }
.card, .panel { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; min-width: 0; }
.panel h3 { margin: 0 0 4px; }
.wide { margin-bottom: 12px; }
.verdict { font-size: 17px; font-weight: 600; overflow-wrap: anywhere; }
.facts { color: var(--soft); font-size: 13.5px; overflow-wrap: anywhere; }
.warning { color: var(--bad); overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 10px; }
.chip { display: inline-flex; align-items: center; gap: 7px; overflow-wrap: anywhere; min-width: 0; }
.chip i { flex: none; width: 12px; height: 12px; border-radius: 3px; }
.chip i.dashed { height: 0; border-radius: 0; border-top: 2px dashed #94a3b8; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; margin: 4px 0 8px; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; padding: 4px 0 4px 22px; }
.numbers td:first-child { min-width: 8em; }
td code { overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; margin: 8px 0; background: var(--card); }
summary { cursor: pointer; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  padding: 8px 10px; margin: 2px 0 8px; font-size: 13px; max-height: 320px; overflow-y: auto; }
.label { color: var(--soft); font-size: 13px; margin-top: 8px; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.js-plotly-plot .xtick text, .js-plotly-plot .ytick text, .js-plotly-plot .xtitle, .js-plotly-plot .ytitle
  { fill: var(--text) !important; }
.js-plotly-plot .gridlayer path { stroke: var(--grid) !important; }
.js-plotly-plot .xlines-above, .js-plotly-plot .ylines-above, .js-plotly-plot .crisp { stroke: var(--line) !important; }
"""
