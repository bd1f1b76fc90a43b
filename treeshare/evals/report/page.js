"use strict";
// Everything from the run is written with textContent or setAttribute, never as markup.
(() => {
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const byId = (id) => document.getElementById(id);
  const make = (tag, className, text, parent) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const count = (n, noun) => n.toLocaleString("en") + " " + noun + (n === 1 ? "" : "s");

  const problems = data("problem-rows");
  const nodes = data("tree-nodes");
  problems.forEach((problem, i) => { problem.place = i; });
  const homes = new Map();
  nodes.forEach((node, i) => node.problems.forEach((place) => homes.set(place, i)));

  const promptOf = (place) => {
    const parts = [];
    for (let i = homes.has(place) ? homes.get(place) : -1; i >= 0; i = nodes[i].parent) {
      if (nodes[i].text === null) return null;
      parts.unshift(nodes[i].text);
    }
    return parts.length ? parts.join("") : null;
  };

  // A list that grows by steps: `add` draws one item.
  const grow = (items, step, add, button) => {
    let shown = 0;
    const more = () => {
      const end = Math.min(shown + step, items.length);
      while (shown < end) add(items[shown++]);
      button.hidden = shown >= items.length;
    };
    button.onclick = more;
    more();
  };

  const shortened = (text) => (text.length > 120 ? text.slice(0, 119) + "\u2026" : text);

  const drawCompletion = (one, parent) => {
    const box = make("div", "completion", undefined, parent);
    const facts = make("div", "facts", undefined, box);
    make("span", "chip " + one.colour, one.verdict, facts);
    const few = one.indices.slice(0, 12).map((i) => "#" + i).join(" ") + (one.indices.length > 12 ? " \u2026" : "");
    make("span", "", (one.indices.length > 1 ? one.indices.length + " times: " : "") + few, facts);
    make("span", "", count(one.tokens, "token") + ", " + one.finish, facts);
    if (one.confidence !== null) make("span", "", "mean confidence " + one.confidence.toFixed(3), facts);
    if (one.answer !== null) make("span", "", "answer " + shortened(one.answer), facts);
    if (one.detail) make("span", "", one.detail, facts);
    make("pre", "", one.text === "" ? "(empty)" : one.text, box);
  };

  const openProblem = (problem, inside) => {
    const prompt = promptOf(problem.place);
    if (prompt !== null) {
      const details = make("details", "prompt", undefined, inside);
      make("summary", "", "Prompt", details);
      make("pre", "", prompt, details);
    }
    const wanted = byId("verdict").value;
    const all = data("c" + problem.place);
    const rows = wanted ? all.filter((one) => one.verdict === wanted) : all;
    if (!rows.length) make("p", "note", "No completions.", inside);
    const list = make("div", "", undefined, inside);
    const button = make("button", "", "Show more completions", inside);
    button.type = "button";
    grow(rows, 20, (one) => drawCompletion(one, list), button);
  };

  const drawProblem = (problem) => {
    const details = make("details", "problem", undefined, byId("list"));
    const summary = make("summary", "", undefined, details);
    make("span", "", problem.id, summary);
    const text = problem.checked ? problem.right + " of " + problem.checked + " right" : count(problem.n, "completion");
    make("span", "count-text", text, summary);
    const bar = make("span", "stack", undefined, summary);
    for (const [verdict, number, colour] of problem.verdicts) {
      const part = make("span", "v " + colour, undefined, bar);
      part.style.flexGrow = number;
      part.title = verdict + ": " + number;
    }
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) openProblem(problem, make("div", "inside", undefined, details));
    });
  };

  const share = (problem) => (problem.checked ? problem.right / problem.checked : -1);
  const ORDERS = {
    run: (a, b) => a.place - b.place,
    hard: (a, b) => share(a) - share(b) || a.place - b.place,
    easy: (a, b) => share(b) - share(a) || a.place - b.place,
    long: (a, b) => b.tokens - a.tokens || a.place - b.place,
  };
  const drawList = () => {
    const find = byId("find").value.toLowerCase();
    const verdict = byId("verdict").value;
    const wanted = problems.filter((problem) => problem.id.toLowerCase().includes(find)
      && (!verdict || problem.verdicts.some(([name]) => name === verdict)));
    wanted.sort(ORDERS[byId("order").value]);
    byId("list").replaceChildren();
    byId("shown").textContent = count(wanted.length, "problem");
    grow(wanted, 100, drawProblem, byId("more"));
  };
  for (const name of new Set(problems.flatMap((problem) => problem.verdicts.map(([verdict]) => verdict)))) {
    make("option", "", name, byId("verdict")).value = name;
  }
  for (const id of ["find", "verdict", "order"]) byId(id).addEventListener("input", drawList);
  drawList();

  if (!nodes.length || !byId("icicle")) return;

  const children = nodes.map(() => []);
  nodes.forEach((node, i) => { if (node.parent >= 0) children[node.parent].push(i); });
  // A problem without completions yet still has a width.
  const weights = nodes.map((node) => Math.max(node.completions, node.problems.length ? 0.5 : 0));
  for (let i = nodes.length - 1; i > 0; i--) {
    if (children[i].length) weights[i] = Math.max(weights[i], children[i].reduce((sum, c) => sum + weights[c], 0));
  }
  weights[0] = Math.max(weights[0], children[0].reduce((sum, c) => sum + weights[c], 0), 0.5);
  const maxTokens = nodes.reduce((highest, node) => Math.max(highest, node.tokens), 1);
  const ROW = 30;
  const MIN_WIDTH = 3;
  const svgMake = (tag, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  };
  const secondsOf = (node) => (node.prefill_s === null ? "" :
    ", prefill " + node.prefill_s.toFixed(2) + " s, decoding below " + node.decode_s.toFixed(1) + " s");
  const describe = (i) => {
    const node = nodes[i];
    const below = count(node.completions, "completion") + " below";
    if (!node.tokens) return "no tokens that all prompts share, " + below + secondsOf(node);
    return count(node.tokens, "token") + " [" + node.start + ", " + (node.start + node.tokens) + "), " + below + secondsOf(node);
  };
  const showNode = (i) => {
    const box = byId("node");
    box.replaceChildren();
    make("div", "", describe(i), box);
    const ids = nodes[i].problems.slice(0, 20).map((place) => problems[place] ? problems[place].id : "?");
    if (ids.length) make("div", "", "ends here: " + ids.join(", "), box);
    const text = nodes[i].text;
    if (text) make("pre", "", text.length > 3000 ? text.slice(0, 1500) + "\n\u2026\n" + text.slice(-1400) : text, box);
  };

  let focus = 0;
  const drawBox = (svg, i, x, y, width) => {
    const strength = 0.15 + 0.6 * Math.sqrt(nodes[i].tokens / maxTokens);
    const rect = svgMake("rect", { x, y, width, height: ROW, "fill-opacity": strength.toFixed(3), tabindex: 0 }, svg);
    svgMake("title", {}, rect).textContent = describe(i);
    rect.addEventListener("pointerenter", () => showNode(i));
    rect.addEventListener("focus", () => showNode(i));
    const choose = () => { focus = i === focus && nodes[i].parent >= 0 ? nodes[i].parent : i; drawTree(); };
    rect.addEventListener("click", choose);
    rect.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(); });
    if (width > 34) {
      if (!nodes[i].tokens) { svgMake("text", { x: x + 5, y: y + ROW / 2 + 4 }, svg).textContent = "nothing shared"; return; }
      const long = count(nodes[i].tokens, "token") + secondsOf(nodes[i]).split(", dec")[0];
      const label = width > 8 * long.length ? long : width > 70 ? count(nodes[i].tokens, "token") : String(nodes[i].tokens);
      svgMake("text", { x: x + 5, y: y + ROW / 2 + 4 }, svg).textContent = label;
    }
  };
  const drawSmall = (svg, ids, x, y, width) => {
    const rect = svgMake("rect", { x, y, width, height: ROW, class: "small" }, svg);
    svgMake("title", {}, rect).textContent = count(ids.length, "segment") + " too narrow to draw; choose their parent";
    if (width > 60) svgMake("text", { x: x + 5, y: y + ROW / 2 + 4 }, svg).textContent = ids.length + " more";
  };
  const drawTree = () => {
    const home = byId("icicle");
    const total = home.clientWidth;
    home.className = "tree";
    home.replaceChildren();
    const svg = svgMake("svg", { width: total, height: ROW, role: "img", "aria-label": "Prompt tree" }, home);
    let deepest = 0;
    const stack = [[focus, 0, 0, total]];
    while (stack.length) {
      const [i, depth, x, width] = stack.pop();
      deepest = Math.max(deepest, depth);
      drawBox(svg, i, x, depth * ROW, width);
      let at = x;
      let small = [];
      let smallAt = at;
      const flush = () => {
        if (small.length) { drawSmall(svg, small, smallAt, (depth + 1) * ROW, at - smallAt); deepest = Math.max(deepest, depth + 1); }
        small = [];
      };
      for (const child of children[i]) {
        const own = width * weights[child] / weights[i];
        if (own < MIN_WIDTH) { if (!small.length) smallAt = at; small.push(child); at += own; continue; }
        flush();
        stack.push([child, depth + 1, at, own]);
        at += own;
      }
      flush();
    }
    svg.setAttribute("height", (deepest + 1) * ROW);
    const path = byId("path");
    path.replaceChildren();
    for (let i = focus; i >= 0; i = nodes[i].parent) {
      const button = make("button", "", i === 0 ? "root" : count(nodes[i].tokens, "token"));
      button.type = "button";
      button.addEventListener("click", () => { focus = i; drawTree(); });
      path.prepend(button);
    }
    showNode(focus);
  };
  drawTree();
  let width = byId("icicle").clientWidth;
  window.addEventListener("resize", () => {
    if (byId("icicle").clientWidth !== width) { width = byId("icicle").clientWidth; drawTree(); }
  });
})();
