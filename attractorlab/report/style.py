"""The look and the behaviour of a report page: one style sheet, one script."""

STYLE = """
:root{--paper:#fff;--card:#fff;--ink:#1b1f24;--muted:#4b535c;--rule:#dfe3e8;--tint:#f4f6f8;--accent:#005a8d;--mark:#0072b2;--span:#9cc7e2;
  --body:"Charter","Iowan Old Style","Source Serif 4",Georgia,"Times New Roman",serif;
  --sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;--code:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;color-scheme:light}
:root[data-theme=dark]{--paper:#101316;--card:#14171b;--ink:#e8eaed;--muted:#b4bbc4;--rule:#2c3239;--tint:#1b1f24;--accent:#7cc4f0;--mark:#56b4e9;--span:#1f4a66;color-scheme:dark}
@media (prefers-color-scheme:dark){:root:not([data-theme]){--paper:#101316;--card:#14171b;--ink:#e8eaed;--muted:#b4bbc4;--rule:#2c3239;--tint:#1b1f24;
  --accent:#7cc4f0;--mark:#56b4e9;--span:#1f4a66;color-scheme:dark}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1.5rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:17px/1.6 var(--body)}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.skip{position:absolute;left:-999px}.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem;z-index:9}
nav{position:fixed;inset:0 auto 0 0;width:250px;padding:2rem 1.25rem;border-right:1px solid var(--rule);background:var(--tint);overflow-y:auto;font:14px/1.4 var(--sans)}
nav .bar{display:flex;flex-direction:column;align-items:flex-start;gap:.9rem;margin-bottom:1.4rem}
nav .name{font-weight:650;font-size:15px;color:var(--ink);text-decoration:none;overflow-wrap:anywhere}
nav button{font:13px var(--sans);color:var(--ink);background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:.3rem .8rem;cursor:pointer}
nav ol{list-style:none;margin:0;padding:0}
nav li a{display:flex;gap:.6rem;padding:.36rem .5rem;margin:0 -.5rem;border-radius:6px;color:var(--muted);text-decoration:none}
nav li a:hover{color:var(--ink);background:var(--card)}
nav li a.here{color:var(--accent);background:var(--card);font-weight:600}
.no{color:var(--muted);font-variant-numeric:tabular-nums;font-weight:400}
main{margin-left:250px;padding:3rem clamp(1.25rem,4vw,4rem) 6rem}
main>*{max-width:980px;margin-left:auto;margin-right:auto}
h1{font:680 2.1rem/1.2 var(--sans);letter-spacing:-.015em;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font:650 1.4rem/1.3 var(--sans);letter-spacing:-.01em;margin:0 0 .6rem;padding-top:2.6rem;border-top:1px solid var(--rule);display:flex;gap:.7rem}
section{margin-top:3rem}
.subtitle{font-size:1.15rem;color:var(--muted);margin:0 0 1rem;max-width:44rem}
.lead{font-size:1.1rem;margin:.2rem 0 1.2rem}
p{max-width:44rem;overflow-wrap:anywhere}
.facts{display:flex;flex-wrap:wrap;gap:.5rem 2rem;margin:1.2rem 0 0;font:13px/1.45 var(--sans)}
.facts dt{color:var(--muted)}.facts dd{margin:0;font-weight:550;overflow-wrap:anywhere}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px}
figure{margin:1.6rem 0;padding:1.1rem 1.25rem 1rem;min-width:0}
.fig-title{font:620 1.02rem/1.35 var(--sans);margin:0}
.fig-facts{font:12.5px/1.5 var(--sans);color:var(--muted);margin:.15rem 0 .5rem;max-width:none}
.scroll{overflow-x:auto;overflow-y:hidden}
figcaption{font:14.5px/1.5 var(--sans);margin-top:.7rem;padding-top:.7rem;border-top:1px solid var(--rule);max-width:none}
.board{display:block}.board .boards{font-family:var(--sans);font-variant-numeric:tabular-nums}
details{margin-top:.7rem;font:13.5px/1.5 var(--sans)}summary{cursor:pointer;color:var(--accent)}
.table{overflow-x:auto;margin:1.2rem 0;font:13.5px/1.45 var(--sans)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;min-width:min(100%,24rem)}
caption{text-align:left;font-size:14.5px;padding:0 0 .5rem}
th{font-weight:600;text-align:left;border-bottom:1.5px solid var(--muted);vertical-align:bottom}
th,td{padding:.34rem 1.3rem .34rem 0}td{border-bottom:1px solid var(--rule);vertical-align:top}
.wide{font-size:11.5px}.wide th,.wide td{padding-right:.35rem}
.num{text-align:right}
code,pre{font-family:var(--code);font-size:.86em}
p code{background:var(--tint);padding:.08em .3em;border-radius:4px}
pre{background:var(--tint);border:1px solid var(--rule);border-radius:8px;padding:.9rem 1.1rem;overflow-x:auto;line-height:1.5}
.findings{width:100%}.findings .value{font-weight:660;font-size:15px;white-space:nowrap}.findings td.span{white-space:nowrap;font-size:12.5px}
.findings .source{min-width:10rem}
.how{font:12.5px/1.5 var(--sans);color:var(--muted);font-variant-numeric:tabular-nums}.source{font-family:var(--code);font-size:11.5px;overflow-wrap:anywhere}
.gauge{width:9rem;height:7px;margin:.4rem 0 .2rem;display:block}.gauge .track{fill:var(--rule)}.gauge .span{fill:var(--span)}.gauge .mark{fill:var(--mark)}
.note{background:var(--tint);padding:.8rem 1rem;border-radius:8px}
@media (max-width:1020px){
  html{scroll-padding-top:6.5rem}
  nav{position:sticky;top:0;inset:auto;width:auto;padding:.55rem 1rem .45rem;border-right:0;border-bottom:1px solid var(--rule);z-index:5;overflow:hidden}
  nav .bar{flex-direction:row;justify-content:space-between;align-items:center;margin:0 0 .25rem}
  nav .name{white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
  nav ol{display:flex;gap:.3rem;overflow-x:auto}nav li a{white-space:nowrap;margin:0;gap:.35rem}
  main{margin-left:0;padding-top:1.8rem}}
@media (max-width:560px){body{font-size:16px}h1{font-size:1.6rem}main{padding-left:.9rem;padding-right:.9rem}figure{padding:.9rem .8rem}
  h2{font-size:1.22rem}section{margin-top:2rem}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
@media print{nav,.skip,.modebar{display:none!important}main{margin:0;padding:0}body{font-size:11pt}figure,tr{break-inside:avoid}h2{break-after:avoid}
  section{margin-top:1rem}.scroll{overflow:visible}}
"""

SCRIPT = """
(function () {
  "use strict";
  var root = document.documentElement, button = document.getElementById("theme"), wish = window.matchMedia("(prefers-color-scheme: dark)");
  var looks = JSON.parse(document.getElementById("looks").textContent), chosen = null, plots = Array.from(document.querySelectorAll(".plot"));
  function mode() { return chosen || (wish.matches ? "dark" : "light"); }
  function draw(div) {
    if (div.dataset.drawn || !window.Plotly) { return; }
    div.dataset.drawn = mode();
    var spec = JSON.parse(document.getElementById("data-" + div.dataset.figure).textContent);
    spec.layout.template = looks[mode()];
    window.Plotly.newPlot(div, spec.data, spec.layout, {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "zoom2d"],
      toImageButtonOptions: { format: "svg", filename: "figure-" + div.dataset.figure }
    });
  }
  function paint(now) {
    root.dataset.theme = now;
    button.textContent = now === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(now === "dark"));
    plots.forEach(function (div) {
      if (div.dataset.drawn && div.dataset.drawn !== now) {
        div.dataset.drawn = now;
        window.Plotly.relayout(div, { template: looks[now] });
      }
    });
  }
  button.addEventListener("click", function () { chosen = mode() === "dark" ? "light" : "dark"; paint(chosen); });
  wish.addEventListener("change", function () { paint(mode()); });
  window.addEventListener("beforeprint", function () { plots.forEach(draw); paint("light"); });
  window.addEventListener("afterprint", function () { paint(mode()); });
  paint(mode());
  var links = Array.from(document.querySelectorAll("nav li a"));
  function here() {
    var found = null;
    links.forEach(function (link) {
      if (document.getElementById(link.hash.slice(1)).getBoundingClientRect().top < window.innerHeight * 0.35) { found = link; }
    });
    links.forEach(function (link) {
      link.classList.toggle("here", link === found);
      if (link === found) { link.setAttribute("aria-current", "true"); } else { link.removeAttribute("aria-current"); }
    });
  }
  window.addEventListener("scroll", here, { passive: true });
  here();
  if (!("IntersectionObserver" in window)) { plots.forEach(draw); return; }
  var near = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) { if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); } });
  }, { rootMargin: "700px 0px" });
  plots.forEach(function (div) { near.observe(div); });
})();
"""
