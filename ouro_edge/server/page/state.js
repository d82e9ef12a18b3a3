/* The state of the page: model, conversation, settings.
   A piece of an answer is the content of one chunk: {text, thought, depth, exit, lens}. `thought` is true for reasoning;
   depth is 0 for text without a token. */

class Answer {
  constructor(saved = {}) {
    this.role = "assistant";
    this.pieces = [];
    this.text = "";
    this.owner = []; // for each character, the index of its piece
    this.thoughts = 0; // number of characters of reasoning before the answer
    for (const key of ["usage", "seconds", "finish", "problem"]) this[key] = saved[key] ?? null;
    for (const piece of saved.pieces ?? []) this.add(piece);
  }

  add(piece) {
    for (let i = 0; i < piece.text.length; i += 1) this.owner.push(this.pieces.length);
    this.pieces.push(piece);
    this.text += piece.text;
    if (piece.thought) this.thoughts = this.text.length;
  }

  get tokens() {
    return this.pieces.filter((piece) => piece.depth > 0);
  }

  get said() {
    return this.text.slice(this.thoughts).trim();
  }
}

const state = {
  model: null, // of /v1/models
  turns: [], // {role: "user", text} and Answers, alternately
  views: new Map(), // turn -> its element
  running: null, // {controller, answer} during an answer
  edited: null, // the user's turn being edited
};
const settings = { threshold: null, system: "", temperature: "", most: "", lens: true, tint: true, ...stored.read("settings", {}) };
let key = stored.read("key", "", sessionStorage);

const loops = () => state.model?.ouro_edge?.loops ?? 4;
const percent = (p) => (p > 0 && p < 0.005 ? "<1%" : Math.round(p * 100) + "%");
const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const shade = (element, depth) => {
  element.style.setProperty("--d", String(loops() > 1 ? (Math.min(depth, loops()) - 1) / (loops() - 1) : 0));
  return element;
};
/** The text of a token with visible blanks. */
const visible = (text) => (/^<\|.*\|>$/.test(text) || text === "" ? "end" : text.replaceAll("\n", "⏎").replace(/^ (?=\S)/, "").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length)));

const rounded = (x) => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toFixed(2));
