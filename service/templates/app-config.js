// OHIF's settings: this gateway's DICOMweb, and nothing from any other host.
console.time('scriptToView'); // OHIF ends it
window.PUBLIC_URL = '/viewer/';
window.browserImportFunction = url => import(url);
const dicomweb = window.location.origin + '/dicomweb';
window.config = {
  name: 'palimpsest',
  routerBasename: '/viewer',
  extensions: [],
  modes: [],
  customizationService: {},
  showStudyList: true,
  maxNumberOfWebWorkers: 3,
  showWarningMessageForCrossOrigin: true,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  groupEnabledModesFirst: true,
  showErrorDetails: 'dev',
  maxNumRequests: { interaction: 100, thumbnail: 5, prefetch: 10 },
  defaultDataSourceName: 'palimpsest',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'palimpsest',
      configuration: {
        friendlyName: 'Palimpsest',
        name: 'palimpsest',
        qidoRoot: dicomweb,
        wadoRoot: dicomweb,
        wadoUriRoot: dicomweb,
        qidoSupportsIncludeField: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'thumbnail',
        thumbnailRequestStrategy: 'fetch',
        enableStudyLazyLoad: true,
        supportsFuzzyMatching: true,
        supportsWildcard: true,
        supportsReject: false,
        dicomUploadEnabled: false,
        singlepart: 'bulkdata,pdf,video',
        omitQuotationForMultipartRequest: false,
        // references name the host as the gateway sees itself; behind a proxy that is not the browser's
        bulkDataURI: {
          enabled: true,
          transform: url => window.location.origin + new URL(url, window.location.href).pathname,
        },
      },
    },
  ],
  httpErrorHandler: error => {
    if (error.status === 401) {
      const here = window.location.pathname + window.location.search;
      window.location.assign('/login?next=' + encodeURIComponent(here));
    }
  },
};
