"use strict";

SwaggerUIBundle({
  dom_id: "#viewer",
  url: "/v1/openapi.json",
  deepLinking: true,
  displayRequestDuration: true,
  // The schemas are read where they are used; the list of all of them stays folded.
  defaultModelsExpandDepth: 0,
  // A key typed into the page is gone with the page.
  persistAuthorization: false,
  // No other host is asked whether the document is valid.
  validatorUrl: null,
});
