// Results while typing, in place. Without scripts the form and the links do the same, page by page.
"use strict";
(() => {
  const form = document.getElementById("ask"), box = document.getElementById("q");
  const results = document.getElementById("results"), said = document.getElementById("said");
  const PAUSE = 250; // milliseconds without a key before a sentence is asked
  let timer = 0, asking = null;

  const query = () => {
    const given = new URLSearchParams();
    for (const [name, value] of new FormData(form)) if (value) given.set(name, value);
    return given;
  };

  async function show(given, { remember = true, replace = false } = {}) {
    clearTimeout(timer);
    if (asking) asking.abort();
    const own = asking = new AbortController();
    results.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch("/results?" + given, { signal: own.signal });
      if (!answer.ok) { location.assign("/?" + given); return; }
      results.innerHTML = await answer.text();
      const address = [...given].length ? "/?" + given : "/";
      if (remember) history[replace ? "replaceState" : "pushState"](null, "", address);
      document.title = (given.get("q") || "Search") + " – " + document.querySelector("h1 a").textContent;
      const count = results.querySelectorAll(".hits > li").length;
      said.textContent = count + (count === 1 ? " image" : " images");
      results.setAttribute("aria-busy", "false");
    } catch (error) {
      if (error.name === "AbortError") return;
      results.setAttribute("aria-busy", "false");
      said.textContent = "The search does not answer.";
    }
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); show(query()); });
  box.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => show(query(), { replace: true }), PAUSE); });
  for (const option of form.querySelectorAll("[name=run], [name=why]"))
    option.addEventListener("change", () => {
      const given = query(), image = new URLSearchParams(location.search).get("image");
      if (image) given.set("image", image);
      show(given, { replace: true });
    });

  results.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const address = new URL(link.href);
    if (address.origin !== location.origin || address.pathname !== "/") return;
    event.preventDefault();
    const given = new URLSearchParams([...address.searchParams].filter(([, value]) => value));
    const more = link.closest(".more");
    if (!given.has("image")) box.value = given.get("q") || "";
    show(given).then(() => { if (!more) { scrollTo(0, 0); results.focus({ preventScroll: true }); } });
  });

  addEventListener("popstate", () => {
    const given = new URLSearchParams(location.search);
    box.value = given.get("q") || "";
    for (const option of form.querySelectorAll("[name=run]")) option.checked = option.value === (given.get("run") || "");
    form.querySelector("[name=why]").checked = given.get("why") === "1";
    show(given, { remember: false });
  });

  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || document.activeElement === box) return;
    event.preventDefault();
    box.focus();
    box.select();
  });
})();
