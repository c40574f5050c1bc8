"use strict";
// Shows the pairs that the address names after "#" (slice=direct&edited=found), and how many they are.
const form = document.querySelector("form");
const fields = [...form.querySelectorAll("select")];
const pairs = [...document.querySelectorAll("figure.pair")];
const count = document.querySelector("#count");

function show() {
  const wanted = fields.filter((field) => field.value).map((field) => [field.name, field.value]);
  let shown = 0;
  for (const pair of pairs) {
    const fits = wanted.every(([name, value]) => pair.dataset[name] === value);
    pair.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${pairs.length} pairs`;
}

function read() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const field of fields) {
    const value = asked.get(field.name) || "";
    field.value = [...field.options].some((option) => option.value === value) ? value : "";
  }
  show();
}

form.addEventListener("change", () => {
  const chosen = fields.filter((field) => field.value).map((field) => [field.name, field.value]);
  history.replaceState(null, "", "#" + new URLSearchParams(chosen));
  show();
});
form.addEventListener("reset", () => {
  history.replaceState(null, "", "#");
  setTimeout(show);
});
window.addEventListener("hashchange", read);
form.hidden = false;
read();
