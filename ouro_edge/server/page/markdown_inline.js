/* Markdown inside a block: code, links, emphasis and text. */

const LINK = /!?\[((?:[^[\]\\]|\\.)*)\]\(([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)(?:[ \t]"[^"]*")?\)/y;
const ADDRESS = /https?:\/\/[^\s<>"'`*|\\]+/y;
const TICKS = /`+/y;
const BREAK = /<br ?\/?>/iy;

/** Append the characters of a range to parent as nodes: code, links, emphasis, text. */
function inline(parent, run, from, end, depth) {
  const { text, places, paint } = run;
  const missing = new Set(); // marks without a partner in the rest
  let plain = from;
  let i = from;
  const flush = (until) => {
    if (until > plain) paint(parent, text.slice(plain, until), ((base) => (k) => places[base + k])(plain));
  };
  const take = (element, inner, innerEnd, next) => {
    flush(i);
    inline(element, run, inner, innerEnd, depth + 1);
    parent.append(element);
    plain = i = next;
  };
  while (i < end && depth <= DEEPEST) {
    const c = text[i];
    let match;
    if (c === "\\" && i + 1 < end && /[!-/:-@[-`{-~]/.test(text[i + 1])) {
      flush(i);
      plain = i + 1;
      i += 2;
    } else if (c === "`") {
      const marks = at(TICKS, text, i)[0];
      let close = missing.has(marks) ? -1 : text.indexOf(marks, i + marks.length);
      while (close >= 0 && text[close + marks.length] === "`") {
        while (text[close] === "`") close += 1;
        close = text.indexOf(marks, close);
      }
      if (close >= 0 && close + marks.length <= end) {
        flush(i);
        const code = el("code");
        const begin = i + marks.length;
        paint(code, text.slice(begin, close), (k) => places[begin + k]);
        parent.append(code);
        plain = i = close + marks.length;
      } else {
        missing.add(marks);
        i += marks.length;
      }
    } else if ((c === "[" || (c === "!" && text[i + 1] === "[")) && (match = at(LINK, text, i)) && i + match[0].length <= end) {
      const link = anchor(match[2]);
      const label = i + (c === "!" ? 2 : 1);
      if (link && match[1]) take(link, label, label + match[1].length, i + match[0].length);
      else i += match[0].length;
    } else if (c === "h" && !/\w/.test(text[i - 1] ?? " ") && (match = at(ADDRESS, text, i))) {
      const address = match[0].slice(0, end - i).replace(/[.,;:!?)\]]+$/, "");
      const link = anchor(address);
      if (link) {
        flush(i);
        delete link.dataset.host;
        paint(link, address, ((base) => (k) => places[base + k])(i));
        parent.append(link);
        plain = i + address.length;
      }
      i += Math.max(1, address.length);
    } else if (c === "<" && (match = at(BREAK, text, i))) {
      flush(i);
      parent.append(el("br"));
      plain = i += match[0].length;
    } else if (c === "*" || c === "_" || c === "~") {
      let size = 1;
      while (text[i + size] === c) size += 1;
      const strong = size >= 2;
      const mark = c.repeat(strong ? 2 : 1);
      const opens = (c !== "~" || strong) && size <= 3 && /\S/.test(text[i + mark.length] ?? " ") && (c !== "_" || !/\w/.test(text[i - 1] ?? " "));
      const close = opens && !missing.has(mark) ? partner(text, mark, i + mark.length, end) : -1;
      if (close < 0) {
        if (opens) missing.add(mark);
        i += size;
      } else take(el(c === "~" ? "del" : strong ? "strong" : "em"), i + mark.length, close, close + mark.length);
    } else {
      i += 1;
    }
  }
  flush(end);
}

function at(form, text, place) {
  form.lastIndex = place;
  return form.exec(text);
}

/** The index of the closing mark of an emphasis, or -1. */
function partner(text, mark, from, end) {
  const c = mark[0];
  for (let k = text.indexOf(mark, from); k >= 0 && k + mark.length <= end; k = text.indexOf(mark, k)) {
    let size = 1;
    while (k + size < end && text[k + size] === c) size += 1;
    const closes = /\S/.test(text[k - 1]) && text[k - 1] !== "\\" && (c !== "_" || !/\w/.test(text[k + size] ?? " "));
    if (closes && k > from && (size === mark.length || size === 3)) return k + size - mark.length;
    k += size;
  }
  return -1;
}

/** A link with its address as title; null unless it is a web or mail address. */
function anchor(address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const link = el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", title: url.href });
  link.dataset.host = url.host || url.pathname;
  return link;
}
