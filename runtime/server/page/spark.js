// A small line of values over time.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 160;
const HEIGHT = 34;

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** An SVG of `values`, oldest first, from zero up to the largest. */
export function spark(values, label) {
  const svg = shape("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", role: "img", "aria-label": label,
  });
  if (values.length < 2) return svg;
  const most = Math.max(...values) || 1;
  const points = values.map((value, i) => {
    const x = (i / (values.length - 1)) * WIDTH;
    const y = HEIGHT - 2 - (value / most) * (HEIGHT - 4);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  svg.append(
    shape("polygon", { points: `0,${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}`, class: "area" }),
    shape("polyline", { points: points.join(" "), class: "line" }));
  return svg;
}
