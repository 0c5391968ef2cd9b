// Resend the first page's form after the server failed to save it.
"use strict";

const form = document.getElementById("again");
setTimeout(() => form.requestSubmit(), 1000 * Number(form.dataset.seconds));
