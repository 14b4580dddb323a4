// The page of a server: an image is given to it, and the model answers, anew at each threshold.

const MOST_BYTES = 50_000_000; // of an image, as tbkin_core/stages/web.py has it
const RESTS_AFTER = 200; // milliseconds until a threshold that moved counts as chosen
const token = new URLSearchParams(location.search).get("token");
const STATE = $("ask-state").textContent;
let picture = null; // what the server knows the image by, and its file
let answered = null; // picture and question of what is shown
let queue = Promise.resolve(); // of what takes a moment, one after the other
let working = 0;

/** What the server answers, or an error with its message and hint. */
async function call(path, body, type) {
  const headers = { "content-type": type, ...(token && { "x-tbkin-token": token }) };
  let response;
  try {
    response = await fetch(path, { method: "POST", body, headers, cache: "no-store" });
  } catch {
    throw Object.assign(new Error("the server does not answer"), {
      hint: "perhaps `tbkin visualize --serve` was ended; start it again and load this page anew",
    });
  }
  const content = await response.json().catch(() => ({}));
  if (response.ok) return content;
  throw Object.assign(new Error(content.error ?? `the server answered ${response.status}`), {
    hint: content.hint, status: response.status,
  });
}

function tell(error) {
  $("ask-problem").hidden = !error;
  $("ask-problem").replaceChildren(...(error
    ? [error.message, ...(error.hint ? [make("span", {}, error.hint)] : [])] : []));
}

/** Do something that takes a moment, in its turn; errors are shown, and what was there before stays. */
function work(words, what) {
  working++;
  queue = queue.then(async () => {
    $("ask-state").textContent = words;
    $("ask").setAttribute("aria-busy", "true");
    tell(null);
    try {
      await what();
    } catch (error) {
      tell(error);
    }
    working--;
    $("ask-state").textContent = STATE;
    $("ask").removeAttribute("aria-busy");
  });
  return queue;
}

// ---- the image ----------------------------------------------------------------------------------

async function send(file) {
  if (file.size > MOST_BYTES) {
    throw Object.assign(new Error(`${file.name}: is larger than ${MOST_BYTES / 1e6} MB`), {
      hint: "scale it down, or give another one",
    });
  }
  const name = encodeURIComponent(file.name.slice(0, 200).replace(/\p{Surrogate}/gu, ""));
  return { ...(await call(`image?name=${name}`, file, "application/octet-stream")), file };
}

function choose(file) {
  if (!file) return;
  work("Reading the image …", async () => {
    picture = await send(file);
    nothing(); // what is shown is of the image before
    $("preview").src = picture.preview;
    $("preview").hidden = false;
    $("drop").classList.add("has-image");
    $("drop-text").replaceChildren(`${picture.name}, ${picture.size.join(" × ")}. `,
      make("span", { class: "link" }, "Choose another"));
    $("text").focus({ preventScroll: true });
  });
}

$("file").addEventListener("change", () => {
  choose($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
// Dropped anywhere on the page it is meant for the box: a browser would leave the page and show it.
let entered = 0;
addEventListener("dragenter", (event) => {
  event.preventDefault();
  entered++;
  $("drop").classList.add("over");
});
addEventListener("dragleave", () => --entered || $("drop").classList.remove("over"));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  entered = 0;
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  else tell(new Error("what was dropped is no file; save the image first, then drop that"));
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData?.files ?? [];
  if (file) choose(file);
});

// ---- the question -------------------------------------------------------------------------------

async function ask(asked, withImage) {
  const body = () => JSON.stringify({
    image: asked.picture.id, question: asked.text, selection: asked.rule, threshold: asked.threshold,
    with_image: withImage,
  });
  try {
    return await call("ask", body(), "application/json");
  } catch (error) {
    if (error.status !== 410) throw error;
    // The server keeps a few images only, and none when it is started again.
    Object.assign(asked.picture, await send(asked.picture.file));
    return call("ask", body(), "application/json");
  }
}

/** A threshold that was moved holds for the next question too; a rule without one is the model's own. */
const chosenThreshold = () =>
  trace && canTry(state.rule) ? { rule: state.rule, threshold: threshold() } : {};

$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("send").disabled = true;
  work("Asking the model …", async () => {
    if (!picture) throw new Error("there is no image yet; drop one into the box, or choose one");
    const asked = { picture, text: $("text").value, ...chosenThreshold() };
    const content = await ask(asked, true);
    $("image").src = content.image;
    if (!show(content)) return;
    answered = asked;
    $("model-notes").open = false;
    reply(content.notes);
  }).then(() => ($("send").disabled = false));
});

/** The likeliest answer of both passes, above everything else. */
function reply(notes) {
  const names = [trace.dense, trace.thresholded].map(({ answers }) => answerName(answers[0][0]));
  const shares = [trace.dense, trace.thresholded].map(({ answers }) => percent(answers[0][1]));
  const selection = ruleName(trace.selection, trace.threshold);
  const part = (name, text) => [make("strong", { dir: "auto" }, name), make("span", {}, text)];
  $("reply").replaceChildren(...(names[0] === names[1]
    ? part(names[0], `${shares[0]} dense, ${shares[1]} with ${selection}`)
    : [...part(names[0], `${shares[0]} dense`), ...part(names[1], `${shares[1]} with ${selection}`)]));
  $("reply").hidden = false;
  $("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
  $("notes").hidden = !notes.length;
  document.documentElement.dataset.answered = `${trace.selection} ${trace.threshold}`;
}

// ---- the threshold ------------------------------------------------------------------------------

let rest = 0;

thresholdMoved = () => {
  clearTimeout(rest);
  rest = setTimeout(follow, RESTS_AFTER);
};

/** Ask again at the threshold that the slider rests at. */
function follow() {
  const isOwn = () => state.rule === trace.selection && threshold() === trace.threshold;
  if (!answered || isOwn()) return;
  if (working) return void thresholdMoved();
  work("Asking the model at this threshold …", async () => {
    const asked = { picture: answered.picture, text: answered.text, ...chosenThreshold() };
    let content;
    try {
      content = await ask(asked, false);
    } catch (error) {
      if (error.status === 503) rest = setTimeout(follow, 2000); // it is busy with others
      throw error;
    }
    update(content);
    reply(content.notes);
    // It may have moved on meanwhile.
    if (!isOwn()) thresholdMoved();
  });
}

/** Show no answer. */
function nothing() {
  clearTimeout(rest);
  answered = null;
  document.querySelector("main").hidden = $("reply").hidden = $("notes").hidden = true;
  $("question").textContent = "Ask about an image";
  delete document.documentElement.dataset.answered;
}

followsThreshold = true;
$("subtitle").textContent = `${$("ask").dataset.title} · ${$("ask").dataset.checkpoint}`;
nothing();
document.documentElement.dataset.ready = "yes";
