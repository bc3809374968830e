"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
const formats = { steps: ",d", tokens: ".3s", FLOPs: ".2e", hours: ".2f" };
let axis = "steps";
let logarithmic = false;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function layout(yFormat, marks, tall) {
  const soft = color("soft"), line = color("line"), scale = tall && logarithmic ? "log" : "linear";
  const ticks = { gridcolor: line, zeroline: false, linecolor: line, tickfont: { color: soft, size: 12 }, nticks: tall ? 8 : 5, automargin: true };
  return {
    margin: { l: 46, r: 12, t: 8, b: tall ? 44 : 30 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: color("sans"), color: color("ink") },
    showlegend: false,
    dragmode: touch ? false : "zoom",
    hovermode: "x unified",
    hoverlabel: { bgcolor: color("card"), bordercolor: line, font: { color: color("ink"), size: 12.5 } },
    xaxis: {
      ...ticks, type: scale, showgrid: false, ticks: "outside", ticklen: 4, tickcolor: line, hoverformat: formats[axis],
      exponentformat: axis === "FLOPs" ? "power" : "SI",
      title: tall ? { text: data.axes[axis].title, font: { size: 12.5, color: soft }, standoff: 8 } : undefined,
    },
    yaxis: { ...ticks, type: scale, hoverformat: yFormat, tickformat: tall ? undefined : yFormat },
    shapes: marks.map((x) => ({
      type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: soft, width: 1.3, dash: "dot" },
    })),
  };
}

function traces({ raw, smooth }, name, width) {
  const x = data.axes[axis].x;
  const curve = (y, label, shade, thick) => ({
    x, y, name: label, type: "scatter", mode: y.length > 1 ? "lines" : "markers", line: { color: shade, width: thick },
  });
  return smooth
    ? [curve(raw, name, color("blue-faint"), 1), curve(smooth, "running mean", color("blue"), width)]
    : [curve(raw, name, color("blue"), width)];
}

function validation() {
  return {
    x: data.evaluations.x[axis], y: data.evaluations.y, name: "validation", type: "scatter", mode: "lines+markers",
    line: { color: color("orange"), width: 1.2, dash: "dot" },
    marker: { color: color("orange"), size: 8, line: { color: color("card"), width: 1.5 } },
  };
}

function draw() {
  const options = { displayModeBar: false, responsive: true };
  const marks = data.resumes[axis];
  Plotly.react("chart-loss", [...traces(data.loss, "training", 2), validation()], layout(".4f", marks, true), options);
  for (const chart of data.charts) {
    Plotly.react(`chart-${chart.key}`, traces(chart, chart.title, 1.5), layout(chart.format, marks, false), options);
  }
}

function start() {
  if (!data.axes.steps.x.length) {
    const chart = document.getElementById("chart-loss");
    chart.classList.add("empty");
    chart.textContent = "No step has been logged yet.";
    return;
  }
  const hints = [touch ? "" : "Drag to zoom, double click to see everything."];
  if (data.thinned) hints.push("Of many lines, the lowest and highest of each part are drawn.");
  document.getElementById("hint").textContent = hints.join(" ").trim();
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => {
      axis = button.dataset.axis;
      for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", other === button);
      draw();
    });
  }
  document.getElementById("log").addEventListener("click", (event) => {
    logarithmic = !logarithmic;
    event.target.setAttribute("aria-pressed", logarithmic);
    draw();
  });
  dark.addEventListener("change", draw);
  draw();
}

document.getElementById("copy").addEventListener("click", async (event) => {
  const command = document.getElementById("command");
  getSelection().selectAllChildren(command);
  try { await navigator.clipboard.writeText(command.textContent); event.target.textContent = "copied"; } catch { event.target.textContent = "selected"; }
});
document.getElementById("unfold").addEventListener("click", (event) => {
  const open = event.target.getAttribute("aria-pressed") !== "true";
  event.target.setAttribute("aria-pressed", open);
  for (const drawer of document.querySelectorAll("#config details")) drawer.open = open;
});
start();
