/* Markdown blocks: lines of text become blocks, blocks become elements.
   A line is {text, at}: a slice of the source and its offset. Every leaf has an offset in the source, so that paint()
   can find its tokens. */

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+|$)/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( {1,4}(?=\S)| *$)/;
const DASHES = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

const DEEPEST = 8; // deeper nesting is shown as text

const blank = (line) => line.text.trim() === "";
const cut = (line, n) => ({ text: line.text.slice(n), at: line.at + n });
const indent = (line) => line.text.length - line.text.trimStart().length;

function linesOf(text, at = 0) {
  return text.split("\n").map((line) => {
    const slice = { text: line, at };
    at += line.length + 1;
    return slice;
  });
}

function opensBlock(line) {
  return [FENCE, HEADING, RULE, QUOTE].some((form) => form.test(line.text)) || /^ {0,3}(?:[-*+]|1[.)]) +\S/.test(line.text);
}

/** Lines -> blocks: {kind, lines, ...}. Added text can change only the last block. */
function blocksOf(lines, depth = 0) {
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    let match;
    if (blank(line)) {
      i += 1;
    } else if ((match = FENCE.exec(line.text))) {
      const closing = new RegExp(`^ {0,3}\\${match[1][0]}{${match[1].length},}\\s*$`);
      const block = { kind: "code", language: match[2].trim(), first: line, lines: [] };
      for (i += 1; i < lines.length && !closing.test(lines[i].text); i += 1) block.lines.push(lines[i]);
      i += 1;
      blocks.push(block);
    } else if ((match = HEADING.exec(line.text))) {
      const text = line.text.replace(/\s+#+\s*$/, "");
      blocks.push({ kind: "heading", level: match[1].length, lines: [cut({ text, at: line.at }, Math.min(match[0].length, text.length))] });
      i += 1;
    } else if (RULE.test(line.text)) {
      blocks.push({ kind: "rule", lines: [line] });
      i += 1;
    } else if (depth < DEEPEST && QUOTE.test(line.text)) {
      const inner = [];
      for (; i < lines.length && (match = QUOTE.exec(lines[i].text)); i += 1) inner.push(cut(lines[i], match[0].length));
      blocks.push({ kind: "quote", lines: inner, depth });
    } else if (depth < DEEPEST && (match = ITEM.exec(line.text))) {
      const block = { kind: "list", ordered: match[2].length > 1, start: parseInt(match[2], 10), items: [], lines: [], depth };
      while (i < lines.length && (match = ITEM.exec(lines[i].text)) && match[2].length > 1 === block.ordered && !RULE.test(lines[i].text)) {
        const width = match[0].length;
        const item = [cut(lines[i], width)];
        for (i += 1; i < lines.length; i += 1) {
          const next = lines[i];
          const under = indent(next) >= 2;
          if (!blank(next) && !under && (blank(lines[i - 1]) || opensBlock(next) || ITEM.test(next.text))) break;
          item.push(blank(next) ? next : cut(next, Math.min(width, indent(next))));
        }
        block.items.push(item);
        block.lines.push(...item);
      }
      blocks.push(block);
    } else if (line.text.includes("|") && lines[i + 1]?.text.includes("-") && lines[i + 1].text.includes("|") && DASHES.test(lines[i + 1].text)) {
      const block = { kind: "table", lines: [line] };
      for (i += 2; i < lines.length && lines[i].text.includes("|"); i += 1) block.lines.push(lines[i]);
      blocks.push(block);
    } else {
      const block = { kind: "text", lines: [line] };
      for (i += 1; i < lines.length && !blank(lines[i]) && !opensBlock(lines[i]); i += 1) block.lines.push(lines[i]);
      blocks.push(block);
    }
  }
  return blocks;
}

function cellsOf(line) {
  const cells = [];
  const last = line.text.trimEnd().length;
  let begin = indent(line) + (line.text.trimStart().startsWith("|") ? 1 : 0);
  for (let i = begin; i <= last; i += 1) {
    if (i < last && (line.text[i] !== "|" || line.text[i - 1] === "\\")) continue;
    if (i > begin || i < last) {
      const cell = { text: line.text.slice(begin, i).trimEnd(), at: line.at + begin };
      cells.push(cut(cell, indent(cell)));
    }
    begin = i + 1;
  }
  return cells;
}

function build(block, paint) {
  const all = (parent, lines) => {
    parent.append(...blocksOf(lines, (block.depth ?? 0) + 1).map((inner) => build(inner, paint)));
    return parent;
  };
  const spans = (parent, lines) => {
    const text = lines.map((line) => line.text).join("\n");
    const places = lines.flatMap((line) => Array.from({ length: line.text.length + 1 }, (_, i) => line.at + i));
    inline(parent, { text, places, paint }, 0, text.length, 0);
    return parent;
  };
  switch (block.kind) {
    case "code": {
      const code = el("code");
      for (const line of block.lines) {
        paint(code, line.text, (i) => line.at + i);
        code.append("\n");
      }
      const copy = el("button", { type: "button", className: "quiet copy-code", textContent: "Copy" });
      return el("figure", {}, el("figcaption", {}, el("span", { textContent: block.language || "code" }), copy), el("pre", { tabIndex: 0 }, code));
    }
    case "heading":
      return spans(el("h" + Math.min(6, block.level + 2)), block.lines);
    case "rule":
      return el("hr");
    case "quote":
      return all(el("blockquote"), block.lines);
    case "list": {
      const list = el(block.ordered ? "ol" : "ul", block.ordered ? { start: block.start } : {});
      list.append(...block.items.map((item) => all(el("li"), item)));
      return list;
    }
    case "table": {
      const rows = block.lines.map((line, i) => el("tr", {}, ...cellsOf(line).map((cell) => spans(el(i ? "td" : "th"), [cell]))));
      return el("div", { className: "wide" }, el("table", {}, el("thead", {}, rows[0]), el("tbody", {}, ...rows.slice(1))));
    }
    default:
      return spans(el("p"), block.lines);
  }
}
