// Resend the form of the first page after the server could not save it.
"use strict";

const form = document.getElementById("retry-form");
setTimeout(() => form.requestSubmit(), 1000 * Number(form.dataset.seconds));
