// Small tools for a page, and forms that say at the field what is wrong and lose no typing.
export const $ = (selector, within = document) => within.querySelector(selector);
export const create = (tag, properties) => Object.assign(document.createElement(tag), properties);
export const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
export const quoted = (title) => `\u201c\u2068${title}\u2069\u201d`; // whatever its script and direction

/** The fields of errors that name none, or name one that is called otherwise here. */
const FIELDS = { email_taken: "email", invalid_credentials: "password", tag_exists: "name", due_date: "day" };
let alerts = 0;

/** When a form is sent and its fields are valid, do a deed. What that throws is explained in the form. */
export function onSubmit(form, deed) {
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.target.type !== "textarea") return;
    event.preventDefault(); // Enter sends from here, too; with Shift it begins a line
    form.requestSubmit();
  });
  form.addEventListener("input", ({ target }) => forgive(form, target));
  form.addEventListener("reset", () => forgive(form));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.ariaBusy === "true") return; // Enter was pressed twice
    forgive(form);
    if (document.activeElement === document.body) $("input", form).focus(); // "Try again" is gone
    const wrong = [...form.elements].filter(complaint);
    for (const field of wrong) complain(form, complaint(field), field);
    if (wrong.length) return wrong[0].focus();
    form.ariaBusy = "true";
    try {
      await deed(event.submitter?.value);
    } catch (error) {
      explain(form, error, event.submitter?.value);
    }
    form.ariaBusy = "false";
  });
}

/** Show an error at the fields it is about; else at the end, with a button of this value if trying again may help. */
export function explain(form, { status, code, message, errors = [] }, value) {
  const told = [[code, message], ...errors.map(({ pointer, detail }) => [pointer?.split("/")[1], detail])];
  for (const [name, text] of told) {
    const field = form.elements[FIELDS[name] ?? name];
    if (field) complain(form, text, field);
  }
  const wrong = $("[aria-invalid]", form);
  if (wrong) return wrong.focus();
  const alert = complain(form, message);
  if (value === undefined || (status && status !== 429 && status < 500)) return;
  alert.append(" ", create("button", { value, textContent: "Try again" }));
}

/** Say what is wrong with a field, if anything is. */
function complaint({ value = "", required, dataset, validity, validationMessage }) {
  if (required && !value.trim()) return "Please fill this in.";
  if ([...value].length > dataset.max) return `At most ${dataset.max} characters.`; // `maxlength` cuts what is pasted
  return !validity.valid && validationMessage;
}

function complain(form, textContent, field) {
  const alert = create("p", { role: "alert", id: `alert-${++alerts}`, textContent, field });
  if (!field) form.append(alert);
  else field.closest("label").after(alert);
  field?.setAttribute("aria-invalid", "true");
  field?.setAttribute("aria-describedby", alert.id);
  return alert;
}

function forgive(form, only) {
  for (const field of only ? [only] : form.elements) field.ariaInvalid = null;
  for (const alert of form.querySelectorAll("[role=alert]")) if (!only || alert.field === only) alert.remove();
}

/** Let a button open a form, and fill it. Saving, Cancel and Escape close it. The focus goes in, and back. */
export function disclose(button, form, fill, save) {
  let filled; // what `fill` answered, for `save`
  const toggle = (isOpen) => {
    if (!isOpen && form.contains(document.activeElement)) button.focus();
    forgive(form);
    if (isOpen) button.parentElement.after(form);
    else form.remove();
    button.ariaExpanded = String(isOpen);
    if (!isOpen) return button.dispatchEvent(new Event("close", { bubbles: true }));
    filled = fill();
    $("input", form).select();
  };
  toggle(false);
  button.onclick = () => toggle(!form.isConnected);
  form.onreset = () => toggle(false);
  form.addEventListener("keydown", ({ key }) => key === "Escape" && toggle(false));
  onSubmit(form, async () => {
    await save(filled);
    toggle(false);
  });
}
