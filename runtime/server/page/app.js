// What holds for the whole page: tabs, theme, key, which model is served.

import { Refusal, getJson, key } from "./api.js";
import { showWriters, startChat } from "./chat.js";
import { startDashboard } from "./dashboard.js";
import { $, notice } from "./dom.js";
import { startPrograms } from "./programs.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];

function select(tab, focus) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", chosen);
    one.tabIndex = chosen ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (focus) tab.focus();
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  document.dispatchEvent(new CustomEvent("tab", { detail: tab.getAttribute("aria-controls") }));
}

function startTabs() {
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => select(tab, false));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) select(tabs.at((place + step) % tabs.length), true);
    });
  });
  select(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0], false);
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const theme = localStorage.getItem("branchline-theme") ?? (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
  };
  $("theme").addEventListener("click", () => {
    const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("branchline-theme", other);
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}

function startKey() {
  const dialog = $("key-dialog");
  $("key-open").addEventListener("click", () => {
    $("key").value = key.get();
    dialog.returnValue = "";
    dialog.showModal();
  });
  $("key").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    dialog.close("save");
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "save") {
      key.set($("key").value.trim());
      showModel();
    }
    $("key").value = "";
  });
}

async function showModel() {
  try {
    const { data } = await getJson("/v1/models");
    $("model").textContent = `${data[0].id} · ${data[0].max_model_len} tokens of context`;
    showWriters(data);
    notice("");
  } catch (error) {
    $("model").textContent = "";
    notice(error instanceof Refusal ? error.message : "The server does not answer.");
    if (error.status === 401 && !$("key-dialog").open) $("key-open").click();
  }
}

startTheme();
startKey();
startChat();
startPrograms();
startDashboard();
startTabs();
showModel();
// Adapters come and go while the page is open.
document.addEventListener("tab", (event) => {
  if (event.detail === "chat") showModel();
});
