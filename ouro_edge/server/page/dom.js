"use strict";
/* Access to document and storage. Text of a model becomes text nodes only. */

const $ = (id) => document.getElementById(id);

/** An element with properties (className, title, ...) and children (nodes or text). */
function el(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A copy of the first element of a <template>. */
function copyOf(id) {
  return $(id).content.firstElementChild.cloneNode(true);
}

const stored = {
  read(key, otherwise, store = localStorage) {
    try {
      return JSON.parse(store.getItem("ouro-edge." + key)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(key, value, store = localStorage) {
    try {
      store.setItem("ouro-edge." + key, JSON.stringify(value));
      return true;
    } catch {
      return false; // storage is full or not allowed; the page works without it
    }
  },
};
